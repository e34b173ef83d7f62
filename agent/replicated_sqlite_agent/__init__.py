"""How a write on one pod becomes a row on another.

capture/   puts triggers on the ordinary file: a user's write leaves a key in the log, nothing more.
outbound/  reads the log in one snapshot, gives each change its version, encodes a group, publishes it.
stream/    is the only door to NATS JetStream: one stream per cluster, one subject per run of an agent.
inbound/   takes groups from the stream, resolves them against what is here, applies them in one transaction.
database/  owns the file: one writer thread, the agent's own tables, the user's schema as data.
snapshots/ gives a new replica its file.
"""
