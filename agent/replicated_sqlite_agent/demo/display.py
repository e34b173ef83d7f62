"""What people see of the demo: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

LINE_EVERY_S: Final = 2.0
"""Between two lines where there is no terminal."""


@dataclass(frozen=True, slots=True)
class View:
    """One node at one moment."""

    node: str
    database: Path
    rows: int
    written: int
    lag_ms: float | None
    """Until everything that the others had written was here; None: it took too long."""
    conflicts: int


@dataclass(frozen=True, slots=True)
class Moment:
    """All nodes at one moment."""

    elapsed_s: float
    views: Sequence[View]
    differing_rows: int

    @property
    def verdict(self) -> str:
        """Whether the copies are equal right now."""
        match self.differing_rows:
            case 0:
                return "equal"
            case 1:
                return "1 row under way"
            case rows:
                return f"{rows} rows under way"


class Display(Protocol):
    """Shows one moment after another, within its `with` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> object: ...

    def show(self, moment: Moment) -> None:
        """Show this moment."""


def make_display(console: Console) -> Display:
    """The one that fits where the output goes."""
    return LiveTable(console) if console.is_terminal else Lines(console)


class LiveTable:
    """A table that is drawn anew in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, moment: Moment) -> None:
        """Draw it."""
        self._live.update(as_table(moment), refresh=True)


class Lines:
    """A line every few seconds, for logs and scripts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left to do."""

    def show(self, moment: Moment) -> None:
        """Print it, unless the last line is too new."""
        if moment.elapsed_s >= self._next_s:
            say(self._console, as_line(moment))
            self._next_s = moment.elapsed_s + LINE_EVERY_S


def as_table(moment: Moment) -> Table:
    """One row per node."""
    table = Table(title=f"{moment.elapsed_s:.0f} s, Ctrl-C ends it", title_justify="left")
    table.add_column("node", no_wrap=True)
    table.add_column("database", overflow="fold")
    for name in ("rows", "written", "lag ms", "conflicts"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("contents", no_wrap=True, min_width=len("999 rows under way"))
    contents = Text(moment.verdict, style="yellow" if moment.differing_rows else "green")
    for view in moment.views:
        numbers = (str(view.rows), str(view.written), _lag(view), str(view.conflicts))
        table.add_row(Text(view.node), Text(str(view.database)), *numbers, contents)
    return table


def as_line(moment: Moment) -> str:
    """All nodes in one line."""
    nodes = (
        f"{view.node}: {view.rows} rows, {view.written} written, lag {_lag(view)} ms, {view.conflicts} conflicts"
        for view in moment.views
    )
    return f"{moment.elapsed_s:4.0f} s  {'; '.join(nodes)}; {moment.verdict}"


def how_to_write(write_to: Path, read_from: Path) -> str:
    """Two commands for another terminal: write to one database, see it in another."""
    insert = "INSERT INTO notes(id, author, text) VALUES ('hello', 'me', 'from another terminal')"
    select = "SELECT * FROM notes WHERE author = 'me'"
    return "\n".join(
        [
            "Write to any of the databases from another terminal, and look at another one:",
            f"  {_shell_command(write_to, insert)}",
            f"  {_shell_command(read_from, select)}",
        ]
    )


def say(console: Console, text: str) -> None:
    """Print text as it is: no markup, no colour, not folded."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _shell_command(database: Path, sql: str) -> str:
    if shutil.which("sqlite3"):
        # The shell does not wait for locks by itself, and the writers are busy.
        # In double quotes, which is easier to read and to change; our SQL holds nothing that they would expand.
        return f'sqlite3 -cmd ".timeout 10000" {shlex.quote(str(database))} "{sql}"'
    code = f"import sqlite3; c = sqlite3.connect({str(database)!r}); print(c.execute({sql!r}).fetchall()); c.commit()"
    return shlex.join([sys.executable, "-c", code])


def _lag(view: View) -> str:
    return "-" if view.lag_ms is None else f"{view.lag_ms:.0f}"
