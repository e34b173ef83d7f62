"""Capture: a user's write leaves the key of its row in the log, in the same transaction, by triggers.

`triggers` is pure (schema -> SQL), `install` puts the triggers and the agent's own tables into the file and keeps them
right when the application changes its schema, `uninstall` takes every trace away.
"""
