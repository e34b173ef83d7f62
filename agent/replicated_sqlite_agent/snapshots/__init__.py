"""A whole file for a new replica: taken from a living one without stopping its writer, verified before it is used."""
