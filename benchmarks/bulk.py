"""An unpaced writer: rows per second until all of them are on the other node, beside the writer alone with capture."""

from __future__ import annotations

import random
import time
from pathlib import Path

from benchmarks.capture import prepare
from benchmarks.figures import Figure, Goal, typical
from benchmarks.rig import (
    PATIENCE_S,
    Agent,
    Cluster,
    Scale,
    child,
    ended,
    newest_id,
    published,
    same_rows,
    until,
)

ROWS = 400_000
TRANSACTION_ROWS = 100
GOAL = 0.6


def measure(folder: Path, cluster: Cluster, scale: Scale) -> list[Figure]:
    """The ratio, and rows per second both ways."""
    first, second = cluster.agents
    alone = prepare(folder / "alone.db", captured=True)
    rates: dict[str, list[float]] = {"alone": [], "replicated": []}
    count = scale.rows(ROWS)
    for _ in range(scale.rounds):
        for way in random.sample(list(rates), 2):
            rates[way].append(_alone(alone, count) if way == "alone" else _replicated(first, second, count))
    ratios = [ours / bare for ours, bare in zip(rates["replicated"], rates["alone"], strict=True)]
    detail = (
        f"{typical(rates['replicated']):,.0f} rows/s, writer alone {typical(rates['alone']):,.0f}; "
        f"rounds {min(ratios):.2f} to {max(ratios):.2f}"
    )
    return [Figure("bulk live, 100-row transactions", typical(ratios), "x", GOAL, Goal.AT_LEAST, detail)]


def _alone(path: Path, count: int) -> float:
    taken = write(path, count)
    return count / ((taken["ended"] - taken["began"]) / 1e9)


def _replicated(first: Agent, second: Agent, count: int) -> float:
    last = newest_id(first.database) + count
    began = write(first.database, count)["began"]
    until(lambda: newest_id(second.database) >= last, "all rows on the other node", PATIENCE_S)
    ended_at = time.monotonic_ns()
    published(first)
    assert same_rows(first, second), "the replicas differ"
    return count / ((ended_at - began) / 1e9)


def write(path: Path, count: int) -> dict[str, int]:
    """Let an application write rows as fast as it can; {"began": ns, "ended": ns}."""
    transactions = count // TRANSACTION_ROWS
    with child("writer", path, newest_id(path) + 1, transactions, "--rows", TRANSACTION_ROWS) as writing:
        taken: dict[str, int] = ended(writing)
        return taken
