"""`rsqlite-agent`: the command of the agent image. `rsqlite` in people.py is the one for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer
import yaml

from replicated_sqlite_agent import settings as configuration
from replicated_sqlite_agent.commands import fetch_status, run_application
from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.settings import Address, Settings
from replicated_sqlite_contract import __version__

application = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Keep a SQLite file equal to its replicas on other nodes. See 'rsqlite demo' for a first look.",
)

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="RSQLITE_CONFIG", metavar="FILE", help="YAML or JSON; RSQLITE_* wins over it."),
]


@application.command()
def run(config: Config = None) -> int:
    """Replicate the database until SIGTERM."""
    settings = _supported(config)
    from replicated_sqlite_agent import runtime  # the other commands shall not wait for all that it imports

    return runtime.run(settings)


@application.command()
def restore(config: Config = None) -> int:
    """Bring the database if it is missing, from a member or the store, then end: for an init container."""
    settings = _supported(config)
    from replicated_sqlite_agent import runtime  # the other commands shall not wait for all that it imports

    return runtime.restore(settings)


@application.command("check-config")
def check_config(config: Config = None) -> int:
    """Print the effective settings as YAML, secrets masked, or every mistake in them."""
    settings = _supported(config)
    print(yaml.safe_dump(configuration.effective(settings), sort_keys=False, allow_unicode=True), end="")
    return 0


@application.command()
def status(config: Config = None) -> int:
    """Print the status of the running agent as JSON."""
    address = configuration.load(config, os.environ).http
    if address is None:
        raise ConfigurationError("http: is 'off', so the agent cannot be asked; give it an address")
    print(json.dumps(fetch_status(f"http://{_reachable(address)}"), indent=2, ensure_ascii=False))
    return 0


@application.command()
def uninstall(
    config: Config = None,
    database: Annotated[
        Path | None, typer.Option("--database", metavar="PATH", help="The SQLite file, without any configuration.")
    ] = None,
) -> int:
    """Remove every trace of the agent from a database, whose agent must be stopped."""
    if database is None:
        database = configuration.load(config, os.environ).database
    from replicated_sqlite_agent.capture.uninstall import uninstall as remove_traces

    removed = remove_traces(database)
    print(f"removed {removed} tables, indexes and triggers of the agent from {database}")
    return 0


@application.command()
def version() -> int:
    """Print the version."""
    print(f"rsqlite-agent {__version__}")
    return 0


def main() -> NoReturn:
    """Entry point of the console script."""
    run_application(application, "rsqlite-agent")


def _supported(config: Path | None) -> Settings:
    """The settings, all of whose features this version has."""
    settings = configuration.load(config, os.environ)
    missing = configuration.unsupported(settings)
    if missing:
        raise ConfigurationError(*missing)
    return settings


def _reachable(listen: Address) -> Address:
    """Where an agent of this machine that listens so is asked: a wildcard address is no destination."""
    return listen._replace(host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host))
