"""What is measured: two agents on one NATS server, processes of their own, and the memory and time they take.

The agents, the server and their folders are those of the integration tests (`tests/integration/cluster.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from integration.cluster import Agent, Cluster, environment, reader, until  # noqa: E402  the path is set above
from integration.servers import NatsServer  # noqa: E402

__all__ = ["NARROW", "Agent", "Cluster", "NatsServer", "Scale", "reader", "until"]

NARROW = "CREATE TABLE narrow (id INTEGER PRIMARY KEY, a INTEGER, b TEXT);"
"""A row of about 20 bytes: the work per row is largest compared to its bytes."""

PATIENCE_S = 300.0
"""How long rows may take to arrive before a benchmark gives up."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    rounds: int
    factor: float
    """Of the full number of rows and seconds."""

    def rows(self, full: int) -> int:
        """This share of a number of rows, in whole thousands."""
        return max(1000, round(full * self.factor / 1000) * 1000)

    def seconds(self, full: float) -> float:
        """This share of a duration."""
        return max(1.0, full * self.factor)


FULL, QUICK = Scale(rounds=5, factor=1.0), Scale(rounds=2, factor=0.2)


@contextmanager
def child(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of ``benchmarks.processes``. It says "ready" once it is, begins at a line on its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"benchmarks.processes.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        cwd=ROOT,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", f"{module} did not start"
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def begin(process: subprocess.Popen[str]) -> None:
    """Let a ready process begin."""
    assert process.stdin is not None
    process.stdin.write("begin\n")
    process.stdin.flush()


def result(process: subprocess.Popen[str]) -> Any:
    """What a process printed as JSON, once it has ended."""
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, f"{process.args!r} ended with {process.returncode}"
    return json.loads(output)


def ended(process: subprocess.Popen[str]) -> Any:
    """`begin` and `result`."""
    begin(process)
    return result(process)


def process_of(agent: Agent) -> psutil.Process:
    """The running process of an agent."""
    assert agent.process is not None
    return psutil.Process(agent.process.pid)


def peak_mib(agent: Agent) -> float:
    """The most memory that an agent's process has had resident since its start, in MiB."""
    for line in Path(f"/proc/{process_of(agent).pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the system does not say how much memory a process has had")


def cpu_s(agent: Agent) -> float:
    """Seconds of processor time that an agent has used since its start."""
    times = process_of(agent).cpu_times()
    return float(times.user + times.system)


def published(agent: Agent) -> None:
    """Wait until the stream has everything written on this agent's file."""
    answer = agent.get(f"/v1/flush?acks=stream&timeout={PATIENCE_S:g}", timeout=PATIENCE_S + 5)
    assert answer.status == 200, answer.body.decode()


def newest_id(path: Path) -> int:
    """The largest id in the narrow table."""
    with closing(reader(path)) as connection:
        return int(connection.execute("SELECT coalesce(max(id), 0) FROM narrow").fetchone()[0])


def same_rows(first: Agent, second: Agent) -> bool:
    """Whether two replicas hold the same rows."""
    query = "SELECT count(*), sum(id), sum(a), sum(length(b)) FROM narrow"
    found = []
    for agent in (first, second):
        with closing(reader(agent.database)) as connection:
            found.append(connection.execute(query).fetchone())
    return bool(found[0] == found[1])
