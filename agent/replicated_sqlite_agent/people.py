"""`rsqlite` and `kubectl rsqlite`: the command for people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replicated_sqlite_agent import backups
from replicated_sqlite_agent.commands import fetch_status, run_application
from replicated_sqlite_contract import __version__

application = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Look at replicated SQLite files, and try them.",
)


@application.command()
def demo(
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Stop after so long; exit code 0 only if all copies are equal.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the databases go. Default: a temporary folder.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the databases and logs where they are.")] = False,
) -> int:
    """Run three agents on three databases, write to all of them, and watch them converge."""
    from replicated_sqlite_agent.demo import run_demo  # the other commands shall not wait for all that it imports

    return run_demo(seconds, folder, keep)


@application.command()
def status(
    url: Annotated[str, typer.Option(help="HTTP address of an agent.")] = "http://127.0.0.1:8081",
    as_json: Annotated[bool, typer.Option("--json", help="Print the document as it is.")] = False,
) -> int:
    """Show how an agent and its database are."""
    document = fetch_status(url)
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    console = Console()
    for table in status_tables(document):
        console.print(table)
    return 0


backups.add_to(application)


@application.command()
def version() -> int:
    """Print the version."""
    print(f"rsqlite {__version__}")
    return 0


def main() -> NoReturn:
    """Entry point of the console scripts; kubectl calls its plugin `kubectl-rsqlite`."""
    plugin = os.path.basename(sys.argv[0]).startswith("kubectl-")
    run_application(application, "kubectl rsqlite" if plugin else "rsqlite")


def status_tables(document: dict[str, Any]) -> list[Table]:
    """A status document as tables: its plain values first, then each map and each list of maps under its name.

    Knows no key by name, so an older command shows all that a newer agent says.
    """
    plain = {key: value for key, value in document.items() if not _is_nested(value)}
    tables = [_pairs("agent", plain)] if plain else []
    for key, value in document.items():
        if isinstance(value, dict) and value and all(isinstance(item, dict) for item in value.values()):
            tables.append(_rows(key, [{"": name, **item} for name, item in value.items()]))
        elif isinstance(value, dict):
            tables.append(_pairs(key, value))
        elif _is_nested(value):
            tables.append(_rows(key, value))
    return tables


def _is_nested(value: object) -> bool:
    is_rows = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return isinstance(value, dict) or is_rows


def _pairs(title: str, values: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    for key, value in values.items():
        table.add_row(Text(key), _cell(value))
    return table


def _rows(title: str, rows: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: object) -> Text:
    """A value for people. As Text, so that brackets in names are not taken for markup."""
    if value is None:
        return Text("-")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    return Text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
