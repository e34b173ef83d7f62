"""What the agent and the operator agree on: names on the wire and in the database, and the version of both."""

from __future__ import annotations

__version__ = "0.1.0"
