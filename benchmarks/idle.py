"""What agents take when nothing happens, and how much memory, whatever the size of transaction and database."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from benchmarks.figures import Figure, typical
from benchmarks.rig import NARROW, PATIENCE_S, Agent, Cluster, Scale, cpu_s, newest_id, peak_mib, reader, until

SECONDS = 20.0
CPU_GOAL_PERCENT = 1.0
MEMORY_GOAL_MIB = 120.0
TRANSACTION_ROWS = 1_000_000
SIZES = (200_000, 2_000_000)
"""Rows of a small and of a large database."""


def measure(folder: Path, scale: Scale) -> list[Figure]:
    """Processor time and memory."""
    peaks = {}
    for rows in (SIZES[0], scale.rows(SIZES[1])):
        with cluster_of(folder / f"size-{rows}", rows) as cluster:
            peaks[rows] = [peak_mib(agent) for agent in cluster.agents]
            if rows == SIZES[0]:
                figures = [_idle(cluster, scale), *_one_transaction(cluster, scale)]
    small, large = (max(peak) for peak in peaks.values())
    detail = f"{small:.0f} MiB at {SIZES[0]:,} rows, {large:.0f} MiB at {max(peaks):,}; joined with it"
    figures.append(Figure("memory, large database to small", large / small, goal=1.1, detail=detail))
    return figures


def cluster_of(folder: Path, rows: int) -> Cluster:
    """Two agents on a database of this many rows."""
    fill = (
        f"WITH RECURSIVE ids (id) AS (VALUES (1) UNION ALL SELECT id + 1 FROM ids WHERE id < {rows}) "
        "INSERT INTO narrow SELECT id, id % 1000, 'row ' || id FROM ids;"
    )
    return Cluster(folder, NARROW + fill, size=2)


def _idle(cluster: Cluster, scale: Scale) -> Figure:
    """Percent of a core that an agent takes while nothing is written."""
    time.sleep(2)
    seconds = scale.seconds(SECONDS)
    before = [cpu_s(agent) for agent in cluster.agents]
    time.sleep(seconds)
    shares = [(cpu_s(agent) - b) / seconds * 100 for agent, b in zip(cluster.agents, before, strict=True)]
    detail = f"over {seconds:.0f} s; both agents {', '.join(f'{share:.2f}' for share in shares)}"
    return Figure("idle agent", typical(shares), "% of a core", CPU_GOAL_PERCENT, detail=detail)


def _one_transaction(cluster: Cluster, scale: Scale) -> list[Figure]:
    """The peak of both sides when an application commits very many rows at once."""
    first, second = cluster.agents
    count = scale.rows(TRANSACTION_ROWS)
    base = newest_id(first.database)
    with closing(reader(first.database)) as connection:
        connection.execute(
            f"WITH RECURSIVE ids (id) AS (VALUES ({base + 1}) "
            f"UNION ALL SELECT id + 1 FROM ids WHERE id < {base + count}) "
            "INSERT INTO narrow SELECT id, id % 1000, 'row ' || id FROM ids"
        )
    until(lambda: newest_id(second.database) >= base + count, "the large transaction on the other node", PATIENCE_S)
    return [
        memory(f"one transaction of {count:,} rows", first, "sender"),
        memory(f"one transaction of {count:,} rows", second, "receiver"),
    ]


def memory(during: str, agent: Agent, role: str) -> Figure:
    """The most memory an agent has had since its start."""
    return Figure(f"memory, {during}, {role}", peak_mib(agent), "MiB", MEMORY_GOAL_MIB)
