"""What the demo shows."""

from __future__ import annotations

import io
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console

from replicated_sqlite_agent.demo.display import Lines, Moment, View, as_line, as_table, how_to_write

DATABASE = Path("/data/[bold]/notes.db")


def make_moment(elapsed_s: float = 3.2, differing_rows: int = 0, lag_ms: float | None = 4.4) -> Moment:
    views = [View(f"demo-{n}", DATABASE, 800 + n, 600 + n, lag_ms, n) for n in (1, 2, 3)]
    return Moment(elapsed_s, views, differing_rows)


def test_the_table_names_each_node_with_its_numbers() -> None:
    output = io.StringIO()
    Console(file=output, width=120).print(as_table(make_moment(differing_rows=2)))
    lines = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    assert ["demo-2", str(DATABASE), "802", "602", "4", "2", "2", "rows", "under", "way"] in lines


@pytest.mark.parametrize(("rows", "verdict"), [(0, "equal"), (1, "1 row under way"), (2, "2 rows under way")])
def test_the_verdict_is_a_few_words(rows: int, verdict: str) -> None:
    assert make_moment(differing_rows=rows).verdict == verdict


def test_a_line_says_the_same() -> None:
    line = as_line(make_moment(lag_ms=None))
    assert line.startswith("   3 s  demo-1: 801 rows, 601 written, lag - ms, 1 conflicts; demo-2: ")
    assert line.endswith("; equal")


def test_without_a_terminal_there_is_a_line_every_two_seconds() -> None:
    output = io.StringIO()
    with Lines(Console(file=output)) as lines:
        for tenth in range(50):
            lines.show(make_moment(tenth / 10))
    assert [line.split()[0] for line in output.getvalue().splitlines()] == ["0", "2", "4"]


@pytest.mark.parametrize("has_shell", [True, False])
def test_the_commands_to_write_with_work_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_shell: bool
) -> None:
    if has_shell and shutil.which("sqlite3") is None:
        pytest.skip("there is no sqlite3 shell here")
    if not has_shell:
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    database = tmp_path / "it's a $HOME.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE notes(id TEXT PRIMARY KEY, author TEXT NOT NULL, text TEXT NOT NULL)")
    write, read = (line.strip() for line in how_to_write(database, database).splitlines()[1:])
    subprocess.run(write, shell=True, check=True, timeout=60)
    shown = subprocess.run(read, shell=True, check=True, timeout=60, capture_output=True, text=True).stdout
    assert "from another terminal" in shown
