"""K3: NATS is away while all nodes write."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.cluster import FULL, Cluster, check_ledger, until

RATE = 200
AWAY = RATE * 60 if FULL else 1_000
"""Transactions per node while NATS is away: a minute of them at full size."""
ROWS = AWAY + 600


@pytest.mark.parametrize("way", ["stop", "kill", "pause"])
def test_what_is_written_while_nats_is_away_arrives_afterwards(tmp_path: Path, way: str) -> None:
    """NATS ends cleanly, is killed, or hangs with open connections, while three writers go on; then it is back.

    In between every pod stays ready, every log keeps what could not be sent, and nothing passes from node to node.
    """
    with Cluster(tmp_path) as cluster:
        first, second, _ = cluster.agents
        ledgers = [
            cluster.ledger(number, ROWS, "--rate", str(RATE), "--shared", "20", "--deletes") for number in range(3)
        ]
        until(lambda: all(ledger.committed() >= 100 for ledger in ledgers), "all writers are under way")

        getattr(cluster.nats, way)()
        gone = [ledger.committed() for ledger in ledgers]
        if way != "pause":
            until(lambda: cluster.total("rsqlite_nats_connected") == 0, "every agent has noticed that NATS is away")
        until(
            lambda: all(ledger.committed() >= before + AWAY for ledger, before in zip(ledgers, gone, strict=True)),
            "the writers go on without NATS",
            timeout=AWAY / RATE * 5 + 30,
        )

        for agent in cluster.agents:
            assert agent.get("/readyz").status == 200, f"an outage of NATS made {agent.node} unready"
            assert agent.metric("rsqlite_log_rows") >= AWAY / 2, f"{agent.node} does not keep what it could not send"
        assert not second.wait(first.position(), timeout=0.5), "writes passed while NATS was away: no outage at all"

        if way == "pause":
            cluster.nats.resume()
        else:
            cluster.nats.start()
        for ledger in ledgers:
            ledger.finish()
        contents = cluster.assert_converged()

        assert contents["notes"]
        for agent in cluster.agents:
            check_ledger(agent.database, ledgers)
            assert agent.metric("rsqlite_nats_connected") == 1
            if way != "pause":
                assert agent.metric("rsqlite_nats_reconnects_total") >= 1
