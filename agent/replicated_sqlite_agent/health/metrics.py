"""Numbers about the agent as Prometheus families. Each is described in docs/metrics.md; a test compares the two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Final, NamedTuple, get_type_hints

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_contract import __version__

PREFIX: Final = "rsqlite_"

QUANTILES: Final = (0.5, 0.99)
"""Of the last write transactions' lock times."""


class Gauge(NamedTuple):
    """Marks a number that goes up and down, published as ``rsqlite_<name>``."""

    help: str


class Total(NamedTuple):
    """Marks a number that only grows while the process lives, published as ``rsqlite_<name>_total``."""

    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """The agent at one moment. A number that is None is not known at this moment: it is published without a value."""

    cluster: str
    node: str
    counters: Counters

    nats_connected: Annotated[bool, Gauge("1 while the agent is connected to NATS, else 0.")]
    nats_reconnects: Annotated[int, Total("How often a lost connection to NATS was made again.")]
    members: Annotated[int | None, Gauge("Members of the cluster, this one included.")]

    log_rows: Annotated[int, Gauge("Rows in the local log: changes that are not both folded and published.")]
    log_bytes: Annotated[int, Gauge("Size of the local log in bytes, estimated.")]
    log_max_rows: Annotated[int, Gauge("Rows at which the local log counts as full (limits.log_max_rows).")]
    log_max_bytes: Annotated[int, Gauge("Bytes at which the local log counts as full (limits.log_max_bytes).")]
    unfolded_rows: Annotated[int, Gauge("Rows in the local log whose versions are not stored yet.")]
    unpublished_seconds: Annotated[float, Gauge("Age of the oldest change made here that is not in the stream, or 0.")]

    stream_bytes: Annotated[int | None, Gauge("Size of the stream in bytes.")]
    stream_max_bytes: Annotated[int | None, Gauge("Size at which the stream is full and publishing waits.")]
    stream_sequence: Annotated[int | None, Gauge("Sequence of the newest message in the stream.")]
    applied_sequence: Annotated[int, Gauge("Stream sequence up to which everything is in this file.")]
    lag_seconds: Annotated[float, Gauge("Age of the oldest change that has arrived but is not applied yet, or 0.")]
    clock_offset_seconds: Annotated[float | None, Gauge("Clock of the NATS server minus the clock of this machine.")]

    tables: Annotated[int, Gauge("Tables that are replicated.")]
    tables_paused: Annotated[int, Gauge("Replicated tables whose changes wait, such as for an equal schema.")]
    tables_left_out: Annotated[int, Gauge("Tables that cannot be replicated; /v1/status says why.")]
    parked_groups: Annotated[int, Gauge("Groups of changes that wait for an earlier one that is missing.")]
    hidden_rows: Annotated[int, Gauge("Rows kept aside because a newer row holds their UNIQUE values.")]
    fk_orphans: Annotated[int | None, Gauge("Rows whose FOREIGN KEY names a row that is not there.")]
    database_bytes: Annotated[int | None, Gauge("Size of the database file in bytes.")]
    wal_bytes: Annotated[int | None, Gauge("Size of SQLite's write-ahead log beside it in bytes.")]

    snapshot_last_seconds: Annotated[float | None, Gauge("When the last snapshot known here was taken, since 1970.")]
    snapshot_verified_seconds: Annotated[float | None, Gauge("When a snapshot was last found right here, since 1970.")]
    snapshot_last_bytes: Annotated[int | None, Gauge("Size of the database in the last snapshot in bytes.")]
    snapshot_last_stored_bytes: Annotated[int | None, Gauge("Size of the last snapshot in its store in bytes.")]


COUNTER_HELP: Final = {
    "applied_groups": "Groups of changes of other nodes that were applied.",
    "applied_rows": "Rows of other nodes that were applied.",
    "apply_failures": "Attempts to apply that failed and were made again, such as on a full disk.",
    "duplicate_groups": "Groups that arrived though they had been applied before.",
    "gaps": "Groups that arrived before one that they follow.",
    "quarantined_runs": "Runs whose changes wait because their clock is too far ahead of the NATS server's.",
    "forced_gaps": "Gaps that nobody filled in time: rows are right, whole transactions are not promised.",
    "refills": "Times that rows were said again because the stream had lost some.",
    "chunks_buffered": "Messages that were kept until the rest of their group arrived.",
    "chunks_dropped": "Messages of groups that can no longer be completed.",
    "published_groups": "Groups of changes that the stream has acknowledged.",
    "published_messages": "Messages that the stream has acknowledged.",
    "published_rows": "Rows that the stream has acknowledged.",
    "published_bytes": "Bytes of messages that the stream has acknowledged.",
    "publish_failures": "Attempts to publish that the stream did not acknowledge.",
    "stream_regressions": "Times that the stream was found behind what it had acknowledged.",
    "consumer_resets": "Times that reading the stream was begun anew from the position in the file.",
    "folded_rows": "Local log rows that were given versions.",
    "schema_installs": "Times that the triggers were installed, at the start or after a change of the schema.",
    "dead_letters": "Messages that could not be applied and were put aside.",
    "snapshots": "Snapshots that were taken here.",
    "snapshots_verified": "Snapshots that were restored here and found to be what their manifests say.",
    "snapshot_failures": "Attempts to take or to check a scheduled snapshot that failed; they are made again.",
    "snapshot_bytes": "Bytes of snapshots that were sent to a store from here.",
    "rows_without_key": "Rows seen with NULL in their primary key, which cannot be replicated.",
    "repaired_rows": "Rows that had vanished without a trigger having seen it, and were taken as deleted.",
    "key_collisions": "Times that two nodes inserted different rows under one key at once.",
    "runs_started": "Runs that were begun: one at the start, one more whenever the file was replaced.",
}
"""Help text of each integer in ``Counters``."""


def exposition(measures: Callable[[], Measures], accept: str) -> tuple[bytes, str]:
    """All metrics in the format that an Accept header asks for: (body, content type)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(AgentCollector(measures))
    ProcessCollector(namespace=PREFIX.rstrip("_"), registry=registry)
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class AgentCollector(Collector):
    """Makes the families anew for each collection, so that no number is kept twice."""

    def __init__(self, measures: Callable[[], Measures]) -> None:
        self._measures = measures

    def collect(self) -> Iterator[Metric]:
        """Every family; one without a value still has its help text and type."""
        measures = self._measures()
        yield from _identity(measures)
        yield from _marked(measures)
        yield from _counted(measures.counters)
        yield _conflicts(measures.counters)
        yield _write_lock(measures.counters)


def _identity(measures: Measures) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        f"{PREFIX}agent_info", "1; which agent this is, in its labels.", labels=("cluster", "node", "version")
    )
    family.add_metric((measures.cluster, measures.node, __version__), 1)
    yield family


def _marked(measures: Measures) -> Iterator[Metric]:
    for name, mark in _MARKS:
        value = getattr(measures, name)
        family: Metric
        if isinstance(mark, Total):
            family = CounterMetricFamily(PREFIX + name, mark.help, value)
        else:
            family = GaugeMetricFamily(PREFIX + name, mark.help, value)
        yield family


def _marks() -> Iterator[tuple[str, Gauge | Total]]:
    """The annotated fields of `Measures`."""
    for name, hint in get_type_hints(Measures, include_extras=True).items():
        for mark in getattr(hint, "__metadata__", ()):
            yield name, mark


_MARKS: Final = tuple(_marks())


def _counted(counters: Counters) -> Iterator[Metric]:
    for field in fields(counters):
        value = getattr(counters, field.name)
        if isinstance(value, int):
            # A counter without a help text here is published all the same; a test asks for the text.
            yield CounterMetricFamily(PREFIX + field.name, COUNTER_HELP.get(field.name, field.name), value)


def _conflicts(counters: Counters) -> Metric:
    help_text = "Discarded values that are recorded here, by table and by the rule of the merge."
    family = CounterMetricFamily(f"{PREFIX}conflicts", help_text, labels=("table", "rule"))
    # A copy, in one step of the interpreter: the writer thread adds to the original.
    for (table, rule), count in sorted(dict(counters.conflicts).items()):
        family.add_metric((table, rule), count)
    return family


def _write_lock(counters: Counters) -> Metric:
    name = f"{PREFIX}write_lock_seconds"
    family = Metric(name, "How long the agent's last write transactions held SQLite's write lock.", "summary")
    lasted = sorted(counters.write_lock_s.copy())
    for quantile in QUANTILES if lasted else ():
        family.add_sample(name, {"quantile": f"{quantile:g}"}, _quantile(lasted, quantile))
    return family


def _quantile(ordered: Sequence[float], quantile: float) -> float:
    """The least of these values that at least this share of them does not exceed."""
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
