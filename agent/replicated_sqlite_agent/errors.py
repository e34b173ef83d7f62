"""What can go wrong, for people: every error is one sentence that names the thing and the way out.

AgentError                 exit 1
|-- ConfigurationError     exit 2   the configuration or the command line
|-- FileUnusableError      exit 3   no database, corrupt, encrypted, read-only
|-- HeldByAnotherError     exit 4   another agent holds this name or this file
`-- StreamError            exit 1   NATS or the stream refused what we asked for
"""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """The root: its text is one sentence for the person who started the command."""

    exit_code: ClassVar[int] = 1


class ConfigurationError(AgentError):
    """The configuration or the command line cannot be used. Carries every mistake found, one sentence each."""

    exit_code = 2

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes: tuple[str, ...] = mistakes


class FileUnusableError(AgentError):
    """The database file cannot be used; it was not changed."""

    exit_code = 3


class HeldByAnotherError(AgentError):
    """Another agent holds this file or this node name."""

    exit_code = 4


class StreamError(AgentError):
    """NATS or the stream refused what we asked for, and trying again would not help."""
