"""Bad input: one sentence, the exit code, and the file is what it was, byte for byte."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.cluster import AGENT_COMMAND, DEADLINE_S, NOTES, Agent, Cluster, dump, environment, free_port

UNREACHABLE = "nats://127.0.0.1:1"
"""What is wrong with a file or a configuration must be said without a server."""


def run(folder: Path, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run the agent's command until it ends by itself."""
    return subprocess.run(
        [AGENT_COMMAND, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(**extra),
        timeout=DEADLINE_S,
        check=False,
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *names: str, after_log: bool = False) -> None:
    """The command ended with `code` and one line on standard error that has all `names` in it; no traceback.

    `after_log`: an agent that had to ask others first may have written its log, lines of JSON, before the sentence.
    """
    output = f"standard output:\n{done.stdout}\nstandard error:\n{done.stderr}"
    assert done.returncode == code, f"exit code {done.returncode}\n{output}"
    assert "Traceback" not in done.stdout + done.stderr, output
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if after_log:
        lines = [line for line in lines if not line.startswith("{")]
    assert len(lines) == 1, f"{len(lines)} lines instead of one sentence\n{output}"
    assert done.stderr.splitlines()[-1] == lines[0], output
    for name in names:
        assert name in lines[0], f"the sentence does not name {name!r}\n{output}"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A sound database with some rows, that nobody has opened with an agent."""
    path = tmp_path / "data" / "app.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(NOTES)
        connection.execute(
            "INSERT INTO notes WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
            " SELECT 'id ' || i, 'w', i, hex(randomblob(20)) FROM n"
        )
        connection.commit()
    return path


def configuration(path: Path, /, **changes: object) -> dict[str, Any]:
    """A sound configuration, with changes; a key set to None is left out."""
    sound: dict[str, Any] = {
        "cluster": "tests",
        "node": "node-0",
        "database": str(path),
        "nats": {"servers": [UNREACHABLE]},
        "http": f"127.0.0.1:{free_port()}",
    }
    return {key: value for key, value in (sound | changes).items() if value is not None}


def written(folder: Path, content: object) -> str:
    """A configuration file with this content; text stands as it is."""
    path = folder / "agent.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


MISTAKES: list[tuple[dict[str, object], str]] = [
    ({"tabels": {}}, "tabels"),
    ({"nats": {"servers": [UNREACHABLE], "severs": []}}, "nats.severs"),
    ({"limits": {"start_without_nets": 3}}, "limits.start_without_nets"),
    ({"cluster": ["a"]}, "cluster"),
    ({"nats": {"servers": 4222}}, "nats.servers"),
    ({"nats": [UNREACHABLE]}, "nats"),
    ({"database": {"path": "x"}}, "database"),
    ({"limits": {"start_without_nats": "soon"}}, "limits.start_without_nats"),
    ({"http": "somewhere"}, "http"),
    ({"mode": "read-wright"}, "mode"),
    ({"cluster": "a b"}, "cluster"),
    ({"cluster": "a.b"}, "cluster"),
    ({"cluster": ""}, "cluster"),
    ({"cluster": "x" * 64}, "cluster"),
    ({"node": "a.b"}, "node"),
    ({"node": "n\u00f6de"}, "node"),
    ({"node": "a*"}, "node"),
    ({"cluster": None}, "cluster"),
    ({"database": None}, "database"),
]


@pytest.mark.parametrize("command", ["run", "check-config"])
@pytest.mark.parametrize(("change", "key"), MISTAKES, ids=[str(change) for change, _ in MISTAKES])
def test_a_mistake_in_the_configuration_is_one_line_that_names_the_key(
    tmp_path: Path, database: Path, command: str, change: dict[str, object], key: str
) -> None:
    """Unknown keys, wrong types, bad names and missing keys end with 2 before the database is touched."""
    before = database.read_bytes()

    done = run(tmp_path, command, "--config", written(tmp_path, configuration(database, **change)))

    assert_refused(done, 2, key)
    assert database.read_bytes() == before


@pytest.mark.parametrize("content", ["cluster: [", "- a\n- b\n", "just text"], ids=["cut", "list", "text"])
def test_a_configuration_that_is_no_map_is_one_line(tmp_path: Path, content: str) -> None:
    """What is no YAML, or no map, ends with 2 and a line that names the file."""
    done = run(tmp_path, "run", "--config", written(tmp_path, content))

    assert_refused(done, 2, "agent.yaml")


def test_a_configuration_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A wrong path is a mistake of the user: 2."""
    assert_refused(run(tmp_path, "run", "--config", str(tmp_path / "missing.yaml")), 2, "missing.yaml")


def test_a_mistake_in_the_environment_is_one_line_that_names_it(tmp_path: Path, database: Path) -> None:
    """Keys from the environment are judged like those of the file."""
    config = written(tmp_path, configuration(database))

    done = run(tmp_path, "run", "--config", config, RSQLITE_NODE="a.b")

    assert_refused(done, 2, "a.b")
    assert "RSQLITE_NODE" in done.stderr or "node" in done.stderr


def test_all_mistakes_are_said_at_once(tmp_path: Path, database: Path) -> None:
    """Three mistakes, three lines: nobody wants to learn of the second after mending the first."""
    config = written(tmp_path, configuration(database, tabels={}, mode="read-wright", cluster="a b"))

    done = run(tmp_path, "run", "--config", config)

    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 3, done.stderr
    for key in ("tabels", "mode", "cluster"):
        assert sum(key in line for line in lines) == 1, done.stderr


def garbage(database: Path, first: int, count: int) -> None:
    """Overwrite bytes of a file with random ones."""
    with database.open("r+b") as file:
        file.seek(first)
        file.write(random.Random(first).randbytes(count))


def truncate(database: Path) -> None:
    """Cut a file in half."""
    os.truncate(database, database.stat().st_size // 2)


def encrypted(database: Path) -> None:
    """What SQLCipher leaves on disk: whole pages that look random."""
    garbage(database, 0, database.stat().st_size)


def of_a_newer_format(database: Path) -> None:
    """A write version of 3 in the header makes a file read-only for this SQLite, for root too."""
    with database.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("These are notes, and no database at all.\n" * 200, encoding="utf-8"),
    "picture": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(5_000)),
    "encrypted": encrypted,
    "schema page destroyed": lambda path: garbage(path, 100, 3_900),
    "page in the middle destroyed": lambda path: garbage(path, 6 * 4096, 4096),
    "cut in half": truncate,
    "written by a newer format": of_a_newer_format,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_named_and_left_alone(tmp_path: Path, database: Path, damage: str) -> None:
    """No database, encrypted, corrupt, or read-only by its format: exit code 3, one sentence, the bytes as before,
    and nothing new beside it.
    """
    DAMAGES[damage](database)
    before = database.read_bytes()

    done = run(tmp_path, "run", "--config", written(tmp_path, configuration(database)))

    assert_refused(done, 3, "app.db")
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == ["app.db"]


def test_a_folder_in_the_place_of_the_database_is_named(tmp_path: Path) -> None:
    """A folder is no file that can be used: 3."""
    (tmp_path / "app.db").mkdir()

    done = run(tmp_path, "run", "--config", written(tmp_path, configuration(tmp_path / "app.db")))

    assert_refused(done, 3, "app.db")
    assert list((tmp_path / "app.db").iterdir()) == []


@pytest.fixture
def read_only(database: Path) -> Iterator[Path]:
    """The database where the agent may not write: by its mode, and for root, whom no mode stops, on a read-only
    mount.
    """
    folder = str(database.parent)
    if os.geteuid() != 0:
        database.chmod(0o444)
        yield database
        return
    try:
        bound = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        bound = False
    if not bound:
        pytest.skip("root may write any file, and may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], capture_output=True, check=True)
        yield database
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_read_only_file_is_named_and_left_alone(tmp_path: Path, read_only: Path) -> None:
    """An agent that cannot write is of no use: 3, with the way out in the sentence."""
    before = read_only.read_bytes()

    done = run(tmp_path, "run", "--config", written(tmp_path, configuration(read_only)))

    assert_refused(done, 3, "app.db")
    assert "read-only" in done.stderr or "write" in done.stderr
    assert read_only.read_bytes() == before


def test_a_second_agent_on_one_file_stops_and_the_first_goes_on(tmp_path: Path) -> None:
    """Another name, another port, the same file: exit code 4. The first agent and the rows are not disturbed."""
    with Cluster(tmp_path, size=2) as cluster:
        first = cluster.agents[0]
        before = dump(first.database)
        second = Agent(tmp_path / "second", first.home, "second", cluster.nats.url)
        second.write_config()

        done = run(tmp_path, "run", "--config", str(second.config))

        assert_refused(done, 4, "app.db")
        assert dump(first.database) == before
        cluster.application(0).execute("INSERT INTO notes VALUES ('after', 'w', 1, 'goes on')")
        assert len(cluster.assert_converged()["notes"]) == 1


@pytest.mark.parametrize("has_file", [True, False], ids=["with a file", "without a file"])
def test_a_second_agent_with_one_node_name_stops_and_its_file_is_left_alone(
    tmp_path: Path, database: Path, has_file: bool
) -> None:
    """Two files, one name in one group: the second waits for the lease of the first to run out, sees it renewed and
    ends with 4. Its file is as before; where it had none, there is none.
    """
    if not has_file:
        database.unlink()
    before = database.read_bytes() if has_file else b""
    with Cluster(tmp_path, size=1) as cluster:
        first = cluster.agents[0]
        twin = Agent(tmp_path / "twin", database.parent, first.node, cluster.nats.url)
        twin.write_config()

        done = run(tmp_path, "run", "--config", str(twin.config))

        assert_refused(done, 4, first.node, after_log=True)
        assert (database.read_bytes() if database.exists() else b"") == before
        assert first.answers("/readyz")
