"""What the agent counts about itself. Plain numbers: any thread may add, `/metrics` and `/v1/status` read them."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Totals since the start of this process. Each is published as ``rsqlite_<name>_total``."""

    applied_groups: int = 0
    applied_rows: int = 0
    apply_failures: int = 0
    """Attempts to apply that failed: the file could not be written, or a group could not be read."""
    duplicate_groups: int = 0
    gaps: int = 0
    forced_gaps: int = 0
    quarantined_runs: int = 0
    """Runs whose changes wait because their clock was too far ahead of the stream server's."""
    refills: int = 0
    chunks_buffered: int = 0
    chunks_dropped: int = 0
    published_groups: int = 0
    published_messages: int = 0
    published_rows: int = 0
    published_bytes: int = 0
    publish_failures: int = 0
    stream_regressions: int = 0
    consumer_resets: int = 0
    folded_rows: int = 0
    schema_installs: int = 0
    dead_letters: int = 0
    snapshots: int = 0
    snapshots_verified: int = 0
    snapshot_failures: int = 0
    snapshot_bytes: int = 0
    rows_without_key: int = 0
    """Rows with NULL in their primary key: SQLite allows them, replication cannot name them."""
    repaired_rows: int = 0
    """Rows whose versions said alive while the table had none: a delete that no trigger saw."""
    key_collisions: int = 0
    runs_started: int = 0
    conflicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(table, rule) -> discarded writes that were made here: the sum over all members counts each once."""
    write_lock_s: deque[float] = field(default_factory=lambda: deque(maxlen=1024))
    """How long the last write transactions held the lock, in seconds."""
