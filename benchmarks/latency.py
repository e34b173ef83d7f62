"""From a commit on one node to its visibility on another, beside a bare JetStream publish to another process.

Both run at the same rate on the same server, in turns. The reader of the replica has a delay of its own, measured on
a database that the application writes directly; it is part of the figure and is shown.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import nats

from benchmarks.figures import Figure, percentile, typical
from benchmarks.rig import NARROW, Cluster, Scale, begin, child, ended, newest_id, result

RATES = (100, 1000)
"""Single-row transactions per second."""
SECONDS = 6.0
P50_GOAL, P99_GOAL = 2.0, 5.0
SUBJECT = "bench.messages"


def measure(folder: Path, cluster: Cluster, scale: Scale) -> list[Figure]:
    """p50 and p99 at each rate as ratios to the bare publish."""
    first, second = cluster.agents
    local = folder / "local"
    local.mkdir()
    with closing(sqlite3.connect(local / "app.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(NARROW)
    asyncio.run(_make_stream(cluster.nats.url))
    figures = []
    for rate in RATES:
        count = round(rate * scale.seconds(SECONDS))
        ways = {
            "agents": lambda count=count, rate=rate: _rows(first.database, second.database, count, rate),
            "bare": lambda count=count, rate=rate: _messages(cluster.nats.url, count, rate),
            "reader": lambda count=count, rate=rate: _rows(local / "app.db", local / "app.db", count, rate),
        }
        taken: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(scale.rounds):
            for way in random.sample(list(ways), len(ways)):
                taken[way].append(ways[way]())
        figures += _figures(rate, taken)
    return figures


def _figures(rate: int, taken: dict[str, list[list[float]]]) -> list[Figure]:
    figures = []
    for percent, goal in ((50, P50_GOAL), (99, P99_GOAL)):
        each = {way: [percentile(delays, percent) for delays in rounds] for way, rounds in taken.items()}
        ratios = [ours / bare for ours, bare in zip(each["agents"], each["bare"], strict=True)]
        detail = (
            f"{typical(each['agents']):.2f} ms, bare publish {typical(each['bare']):.2f} ms, "
            f"the reader itself {typical(each['reader']):.2f} ms; rounds {min(ratios):.2f} to {max(ratios):.2f}"
        )
        figures.append(Figure(f"commit to visible, {rate} tx/s, p{percent}", typical(ratios), goal=goal, detail=detail))
    return figures


async def _make_stream(url: str) -> None:
    connection = await nats.connect(url)
    await connection.jetstream().add_stream(name="bench", subjects=[SUBJECT])
    await connection.close()


def _rows(written: Path, read: Path, count: int, rate: int) -> list[float]:
    """Milliseconds from each commit to its visibility."""
    first = newest_id(written) + 1
    with (
        child("watcher", read, first, count) as watching,
        child("writer", written, first, count, "--rate", rate) as writing,
    ):
        begin(watching)
        committed = ended(writing)["committed"]
        return _delays(committed, result(watching)["seen"])


def _messages(url: str, count: int, rate: int) -> list[float]:
    """Milliseconds from each publish to its arrival in another process."""
    with (
        child("subscriber", url, SUBJECT, count) as listening,
        child("publisher", url, SUBJECT, count, "--rate", rate) as publishing,
    ):
        begin(listening)
        sent = ended(publishing)["committed"]
        return _delays(sent, result(listening)["seen"])


def _delays(began: list[int], seen: list[int]) -> list[float]:
    # A reader may see a row before its writer has come back from the commit to look at the clock.
    return [max(0, there - here) / 1e6 for here, there in zip(began, seen, strict=True)]
