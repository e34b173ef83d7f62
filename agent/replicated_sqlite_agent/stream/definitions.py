"""What the streams of a cluster must look like, and what to tell a person whose stream differs. Pure.

JetStream keeps a KV bucket `B` in a stream `KV_B` and an object store `B` in `OBJ_B`; the settings below are the ones
that the `nats` tool and all client libraries expect of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from replicated_sqlite_contract import names

DUPLICATE_WINDOW_NS: Final = 120 * 1_000_000_000
"""JetStream's own default: a message id sent again within it is stored once."""

ID_KEY: Final = "rsqlite-id"
"""Metadata key of the random part of a stream's id."""

Config = dict[str, Any]
"""A stream configuration as JetStream's JSON has it; durations are nanoseconds, -1 means no limit."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A stream that must exist: its wanted configuration, and how a person makes or mends it."""

    name: str
    purpose: str
    config: Config
    create_command: str
    edit_command: str

    def deviations(self, actual: Config) -> list[str]:
        """One phrase per setting that is not as it must be; empty if the stream is good."""
        found = []
        for setting, wanted in self.config.items():
            if setting in _FREE:
                continue
            value = actual.get(setting, _ABSENT.get(setting))
            if setting == "subjects":
                value, wanted = sorted(value or ()), sorted(wanted)
            if not _suits(setting, value, wanted):
                found.append(f"{setting} is {_show(value)} and must be {_show(wanted)}")
        return found


_FREE: Final = frozenset({"name", "description", "metadata", "max_bytes", "num_replicas"})
"""Settings that a stream may have otherwise than we would create it: they change cost, not correctness."""

_ABSENT: Final[Config] = {
    "max_age": 0,
    "max_msgs": -1,
    "max_msgs_per_subject": -1,
    "max_msg_size": -1,
    "sealed": False,
    "no_ack": False,
    "deny_purge": False,
    "allow_direct": False,
    "allow_rollup_hdrs": False,
    "duplicate_window": 0,
}
"""What the absence of a setting in JetStream's answer means."""


def _suits(setting: str, value: object, wanted: object) -> bool:
    if setting == "duplicate_window":
        return isinstance(value, int) and value >= DUPLICATE_WINDOW_NS
    if wanted == -1:
        # Servers write "no limit" as -1 or 0 depending on their version.
        return value in (-1, 0)
    return value == wanted


def _show(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else f"{value}".lower()


def change_stream(cluster: str, max_bytes: int, replicas: int) -> Definition:
    """The stream of changes and heartbeats: limits retention, no age limit, new messages refused when full."""
    name, subjects = names.stream_name(cluster), list(names.stream_subjects(cluster))
    checked = f"--subjects '{','.join(subjects)}' --discard new --max-age 0 --dupe-window 2m"
    return Definition(
        name=name,
        purpose=f"the changes of cluster '{cluster}'",
        config=_base(name, subjects, replicas)
        | {
            "description": f"Replicated SQLite: changes of cluster {cluster}",
            "max_bytes": max_bytes,
            "max_msgs_per_subject": -1,
            "duplicate_window": DUPLICATE_WINDOW_NS,
        },
        create_command=(
            f"nats stream add {name} {checked} --storage file --retention limits --max-msgs=-1 --max-msg-size=-1 "
            f"--max-bytes {max_bytes} --allow-direct --replicas {replicas} --defaults"
        ),
        edit_command=f"nats stream edit {name} {checked} --allow-direct",
    )


def key_value_bucket(cluster: str, replicas: int) -> Definition:
    """The KV bucket of members, leases and the cluster's record: one value per key, compare-and-set."""
    bucket = names.bucket_name(cluster)
    name = f"KV_{bucket}"
    return Definition(
        name=name,
        purpose=f"members and leases of cluster '{cluster}'",
        config=_base(name, [f"$KV.{bucket}.>"], replicas)
        | {
            "description": f"Replicated SQLite: members and leases of cluster {cluster}",
            "max_bytes": -1,
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
        },
        create_command=f"nats kv add {bucket} --history 1 --storage file --replicas {replicas}",
        edit_command=f"nats stream edit {name} --max-age 0 --discard new",
    )


def object_bucket(cluster: str, replicas: int) -> Definition:
    """The object store of snapshots."""
    bucket = names.bucket_name(cluster)
    name = f"OBJ_{bucket}"
    return Definition(
        name=name,
        purpose=f"snapshots of cluster '{cluster}'",
        config=_base(name, [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"], replicas)
        | {
            "description": f"Replicated SQLite: snapshots of cluster {cluster}",
            "max_bytes": -1,
            "max_msgs_per_subject": -1,
            "allow_rollup_hdrs": True,
        },
        create_command=f"nats object add {bucket} --storage file --replicas {replicas}",
        edit_command=f"nats stream edit {name} --max-age 0 --discard new",
    )


def _base(name: str, subjects: list[str], replicas: int) -> Config:
    """What all three have in common. `sealed`, `no_ack` and `deny_purge` are spelled out to be checked."""
    return {
        "name": name,
        "subjects": subjects,
        "retention": "limits",
        "storage": "file",
        "discard": "new",
        "max_age": 0,
        "max_msgs": -1,
        "max_msg_size": -1,
        "allow_direct": True,
        "sealed": False,
        "no_ack": False,
        "deny_purge": False,
        "num_replicas": replicas,
    }
