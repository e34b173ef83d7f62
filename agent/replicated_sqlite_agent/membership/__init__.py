"""Who is there: leases on names, the members' records in the KV bucket, heartbeats in the stream."""
