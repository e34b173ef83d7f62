"""K8: times are equal byte for byte."""

from __future__ import annotations

from pathlib import Path

from integration.cluster import Cluster, dump

TIMES = [
    "'2024-02-29 23:59:59.123'",
    "'2024-02-29T23:59:59.123456789Z'",
    "'2024-02-29 23:59:59.1230000+05:45'",
    "'0000-00-00 00:00:00'",
    "'not a time'",
    "1709251199123",
    "1709251199.123",
    "2460370.4999898",
    "NULL",
]


def test_times_keep_every_digit_everywhere(tmp_path: Path) -> None:
    """DATETIME, TIMESTAMP, DATE and TIME columns hold what applications write, also with milliseconds, zones or
    nonsense.

    HarmonyLite cuts them to seconds, on the node that wrote them too: so the writer's own file is compared with what
    it was before the agents carried it about, after a change on another node as well.
    """
    schema = "CREATE TABLE t (id INTEGER PRIMARY KEY, a DATETIME, b TIMESTAMP, c DATE, d TIME, e TEXT);"
    with Cluster(tmp_path, schema) as cluster:
        writer, other = cluster.application(0), cluster.application(1)
        for n, time in enumerate(TIMES):
            writer.execute(f"INSERT INTO t VALUES ({n}, {time}, {time}, {time}, {time}, 'first')")
        written = dump(cluster.agents[0].database)
        assert cluster.assert_converged() == written

        other.execute("UPDATE t SET e = 'second'")
        changed = dump(cluster.agents[1].database)

        assert cluster.assert_converged() == changed
        assert [row[:5] for row in changed["t"]] == [row[:5] for row in written["t"]]
