"""The way out: the log is read in one snapshot, a group is encoded, the stream acknowledges it.

`log_reader` runs on its own thread with its own connection and never writes; `publisher` sends; `watcher` wakes both
when the application commits.
"""
