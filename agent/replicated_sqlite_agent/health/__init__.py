"""What an agent tells of itself over HTTP: probes, metrics, and how far its writes have come.

``server`` asks the running agent through the protocol ``Facts`` and turns the answers into HTTP; it decides nothing
itself. ``metrics`` turns numbers into Prometheus families, ``tokens`` a vector into text and back.
"""
