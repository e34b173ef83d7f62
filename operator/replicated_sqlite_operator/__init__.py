"""The operator: one ReplicatedSQLite resource per workload, and the agents to serve it."""
