"""Every name that leaves a process: subjects, stream, buckets, keys, tables. Pure; tests outside rely on them.

`cluster` and `node` are single tokens of a NATS subject, so they hold no dot, space or wildcard.
A run is a random 48-bit number, written as 12 hex digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TABLE_PREFIX: Final = "__rsqlite_"
"""Every table, index and trigger that the agent adds to the user's database starts so."""

AGENTS_QUEUE: Final = "agents"
"""Queue group of `any_agent_subject`: one of the agents answers."""

CLUSTER_KEY: Final = "cluster"
"""Key of the cluster's record (identity, policies in force) in the KV bucket."""

ROLLOUT_KEY: Final = "rollout"
"""Key of the schema rollout in progress in the KV bucket."""

RUN_BITS: Final = 48
"""Size of the random number of a run."""

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}", re.ASCII)


class SubjectKind(StrEnum):
    """What a subject of the stream carries."""

    CHANGES = "c"
    HEARTBEAT = "h"


@dataclass(frozen=True, slots=True)
class StreamSubject:
    """A subject of the stream, taken apart."""

    cluster: str
    kind: SubjectKind
    node: str
    run: int


def is_name(text: str) -> bool:
    """Whether `text` may name a cluster or a node: 1 to 63 of letters, digits, `_` and `-`."""
    return _NAME.fullmatch(text) is not None


def node_from_host(host: str) -> str:
    """The node name that a host name gives: its dots become `_`. May still be no name; see `is_name`."""
    return host.replace(".", "_")


def stream_name(cluster: str) -> str:
    """The JetStream stream of a cluster."""
    return f"rsqlite-{cluster}"


def bucket_name(cluster: str) -> str:
    """The KV bucket and the object store of a cluster; both have the name of the stream."""
    return f"rsqlite-{cluster}"


def stream_subjects(cluster: str) -> tuple[str, str]:
    """The subjects that the stream of a cluster takes in: changes and heartbeats of all nodes."""
    return f"rsqlite.{cluster}.c.>", f"rsqlite.{cluster}.h.>"


def changes_subject(cluster: str, node: str, run: int) -> str:
    """Where a run publishes its changes."""
    return f"rsqlite.{cluster}.c.{node}.{run_text(run)}"


def heartbeat_subject(cluster: str, node: str, run: int) -> str:
    """Where a run publishes its heartbeats."""
    return f"rsqlite.{cluster}.h.{node}.{run_text(run)}"


def agent_subject(cluster: str, node: str) -> str:
    """Where one agent listens for requests."""
    return f"rsqlite.{cluster}.r.{node}"


def any_agent_subject(cluster: str) -> str:
    """Where all agents listen for requests that any one of them may answer (queue group `agents`)."""
    return f"rsqlite.{cluster}.r"


def member_key(node: str) -> str:
    """KV key of a member's status."""
    return f"member.{node}"


def lease_key(purpose: str) -> str:
    """KV key of a lease: `trim`, `snapshot`, `node.<node>` and so on."""
    return f"lease.{purpose}"


def run_text(run: int) -> str:
    """A run as it stands in subjects: 12 hex digits."""
    return f"{run:012x}"


def parse_stream_subject(subject: str) -> StreamSubject | None:
    """Take a subject of the stream apart; None if it is none of ours."""
    parts = subject.split(".")
    if len(parts) != 5 or parts[0] != "rsqlite" or not is_name(parts[1]) or not is_name(parts[3]):
        return None
    try:
        kind, run = SubjectKind(parts[2]), int(parts[4], 16)
    except ValueError:
        return None
    # int() also takes signs, spaces and underscores; only the one spelling that we write is ours.
    if run >> RUN_BITS or run_text(run) != parts[4]:
        return None
    return StreamSubject(cluster=parts[1], kind=kind, node=parts[3], run=run)
