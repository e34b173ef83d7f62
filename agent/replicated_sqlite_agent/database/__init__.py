"""The file: connections, the agent's own tables, and the user's schema read as data.

One thread writes (`connection.Writer`). Nothing here knows NATS. Opening or closing the database file with anything
but SQLite itself is forbidden in this process: it would drop SQLite's POSIX locks.
"""
