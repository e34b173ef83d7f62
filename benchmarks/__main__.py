"""`python -m benchmarks capture|latency|bulk|catchup|idle|all [--quick] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import apsw
import psutil

from benchmarks import bulk, capture, catchup, idle, latency
from benchmarks.figures import Figure, as_json, show
from benchmarks.rig import FULL, NARROW, QUICK, Cluster, Scale


def main() -> int:
    """Measure what was asked for; 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure; every goal is a ratio.")
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true", help="a fifth of the work, two rounds: only to try it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--folder", type=Path, help="where the databases lie (default: the system's temporary folder)")
    given = parser.parse_args()

    print(machine())
    scale = QUICK if given.quick else FULL
    measured: dict[str, list[Figure]] = {}
    for part in PARTS if given.part == "all" else [given.part]:
        with tempfile.TemporaryDirectory(prefix="rsqlite-bench-", dir=given.folder) as folder:
            measured[part] = PARTS[part](Path(folder), scale)
        show(part, measured[part])
    if given.json is not None:
        document = {"machine": machine(), "figures": {part: as_json(figures) for part, figures in measured.items()}}
        given.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def machine() -> str:
    """What the figures were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version} (application), "
        f"{apsw.sqlite_lib_version()} (agent)"
    )


def _with_agents(run: Callable[[Path, Cluster, Scale], list[Figure]]) -> Callable[[Path, Scale], list[Figure]]:
    """A part that needs two agents; their memory is shown with it."""

    def measure(folder: Path, scale: Scale) -> list[Figure]:
        with Cluster(folder / "cluster", NARROW, size=2) as cluster:
            figures = run(folder, cluster, scale)
            sender, receiver = cluster.agents
            return [
                *figures,
                idle.memory("during this", sender, "sender"),
                idle.memory("during this", receiver, "receiver"),
            ]

    return measure


PARTS: dict[str, Callable[[Path, Scale], list[Figure]]] = {
    "capture": capture.measure,
    "latency": _with_agents(latency.measure),
    "bulk": _with_agents(bulk.measure),
    "catchup": _with_agents(catchup.measure),
    "idle": idle.measure,
}

if __name__ == "__main__":
    sys.exit(main())
