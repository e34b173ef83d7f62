"""The ledger: three writers, agents and NATS killed with -9 again and again, and no acknowledged write is lost."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.cluster import FULL, SHARED_ROWS, Agent, Cluster, Ledger, check_ledger, query, until

SEED = 20261121
RATE = 150
"""Transactions per second of each writer: as fast as an application with users, and slow enough for kills in between.
"""


@dataclass(frozen=True)
class Size:
    """How much is written by each writer, and how often somebody is killed."""

    rows: int
    kills: int


def victims(chance: random.Random, agents: int, kills: int) -> list[int]:
    """Whom each kill hits: the number of an agent, or `agents` for NATS; everybody at least once."""
    everybody = list(range(agents + 1))
    chosen = everybody + chance.choices(everybody, k=kills - len(everybody))
    chance.shuffle(chosen)
    return chosen


def wait_for_writes(ledgers: list[Ledger], number: int) -> None:
    """Wait until the writers together have so many acknowledged transactions."""
    until(lambda: sum(ledger.committed() for ledger in ledgers) >= number, f"{number} writes", timeout=300)


def kill_and_restart(agent: Agent) -> int:
    """Kill an agent, also one that is still starting; the number of log rows that it had not trimmed."""
    agent.kill()
    rows = int(query(agent.database, "SELECT count(*) FROM __rsqlite_log")[0][0])
    agent.launch()
    return rows


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(1_500, 6), id="moderate"),
        pytest.param(
            Size(10_000, 30),
            id="full",
            marks=[pytest.mark.slow, pytest.mark.skipif(not FULL, reason="two minutes; RSQLITE_FULL=1 runs it")],
        ),
    ],
)
def test_no_acknowledged_write_is_lost_whoever_is_killed(tmp_path: Path, size: Size) -> None:
    """Each writer inserts rows of its own, deletes some of them, and updates twenty rows that all share. At moments
    drawn from a seed, counted in acknowledged writes, an agent or NATS is killed with -9 and started again at once,
    ready or not.

    In the end all files are equal bit for bit; every row is there that was inserted and not deleted, nothing else;
    each shared row holds what one of the writers wrote there last. Void unless kills hit agents that still had rows
    in their logs.
    """
    chance = random.Random(SEED)
    total = 3 * size.rows
    moments = sorted(chance.sample(range(total // 20, total * 9 // 10), size.kills))
    options = ("--shared", str(SHARED_ROWS), "--deletes", "--rate", str(RATE), "--seed", str(SEED))
    untrimmed = nats_kills = 0
    with Cluster(tmp_path) as cluster:
        ledgers = [cluster.ledger(number, size.rows, *options) for number in range(3)]
        for moment, victim in zip(moments, victims(chance, 3, size.kills), strict=True):
            wait_for_writes(ledgers, moment)
            if victim == len(cluster.agents):
                cluster.nats.kill()
                cluster.nats.start()
                nats_kills += 1
            else:
                untrimmed += kill_and_restart(cluster.agents[victim]) > 1
        for ledger in ledgers:
            assert json.loads(ledger.finish())["committed"] == size.rows
        for agent in cluster.agents:
            agent.wait_started()

        cluster.assert_converged(timeout=180)

        for agent in cluster.agents:
            check_ledger(agent.database, ledgers)
            assert agent.kills >= 1
            assert agent.metric("rsqlite_dead_letters_total") == 0
        assert nats_kills >= 1
        assert sum(agent.kills for agent in cluster.agents) + nats_kills == size.kills
        assert untrimmed >= 1, "every kill hit an agent that had nothing to lose"
