"""The installed commands, run as people run them: one line per error, and the exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from replicated_sqlite_agent.people import status_tables
from replicated_sqlite_contract import __version__

SMALLEST = "cluster: notes\nnode: notes-0\ndatabase: app.db\n"
STATUS = {"node": "notes-0", "ready": True, "members": [{"node": "notes-1", "lag": 0.5}], "log": {"rows": 3}, "n": []}


def command(name: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a console script of this environment, without settings from outside."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RSQLITE_")}
    script = Path(sys.executable).with_name(name)
    return subprocess.run(
        [script, *arguments], env=clean | environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(SMALLEST)
    return path


@pytest.fixture
def agent_url() -> Iterator[str]:
    """An HTTP server that answers as an agent does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(STATUS).encode() if self.path == "/v1/status" else b"[]"
            self.send_response(200 if self.path == "/v1/status" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing on stderr."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("name", "shown"), [("rsqlite-agent", "rsqlite-agent"), ("rsqlite", "rsqlite")])
def test_version(name: str, shown: str) -> None:
    done = command(name, "version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{shown} {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("rsqlite-agent",), "Missing command"),
        (("rsqlite-agent", "fly"), "No such command 'fly'"),
        (("rsqlite-agent", "run", "--fast"), "No such option: --fast"),
        (("rsqlite-agent", "run", "--config"), "Option '--config' requires an argument"),
        (("rsqlite-agent", "run", "--config", "no/such.yaml"), "no/such.yaml: the file cannot be read"),
        (("rsqlite-agent", "run", "extra"), "unexpected extra argument"),
        (("rsqlite", "fly"), "No such command 'fly'"),
        (("rsqlite", "demo", "--seconds", "soon"), "'--seconds'"),
        (("rsqlite", "demo", "--seconds", "0"), "'--seconds'"),
        (("kubectl-rsqlite", "fly"), "kubectl rsqlite: No such command 'fly'"),
        (("rsqlite-operator",), "has no operator yet"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: tuple[str, ...], sentence: str) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("subcommand", ["run", "check-config", "status", "uninstall"])
def test_each_mistake_in_the_configuration_is_one_line(config: Path, subcommand: str) -> None:
    config.write_text("cluster: a.b\nnode: notes-0\ndatabase: app.db\nfoo: 1\nlimits: {conflicts_rows: many}\n")
    done = command("rsqlite-agent", subcommand, "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    keys = [line.split(": ")[1] for line in done.stderr.splitlines()]
    assert sorted(keys) == ["cluster", "foo", "limits.conflicts_rows"]


@pytest.mark.parametrize("subcommand", ["run", "check-config"])
def test_a_feature_of_a_later_version_is_refused(config: Path, subcommand: str) -> None:
    config.write_text(SMALLEST + "mode: independent\narchive: {enabled: true}\n")
    done = command("rsqlite-agent", subcommand, "--config", str(config))
    assert (done.returncode, done.stdout) == (2, "")
    assert [f"is not part of version {__version__} yet" in line for line in done.stderr.splitlines()] == [True, True]


def test_check_config_prints_what_it_would_read_again(config: Path, tmp_path: Path) -> None:
    first = command("rsqlite-agent", "check-config", "--config", str(config), RSQLITE_LIMITS_HEARTBEAT="3s")
    assert (first.returncode, first.stderr) == (0, "")
    assert yaml.safe_load(first.stdout)["limits"]["heartbeat"] == "3s"
    again = tmp_path / "again.yaml"
    again.write_text(first.stdout)
    assert command("rsqlite-agent", "check-config", "--config", str(again)).stdout == first.stdout


def test_check_config_needs_no_file_and_shows_no_secret() -> None:
    environ = {"RSQLITE_CLUSTER": "notes", "RSQLITE_DATABASE": "app.db", "RSQLITE_NATS_TOKEN": "hush"}
    done = command("rsqlite-agent", "check-config", **environ)
    assert done.returncode == 0
    assert "hush" not in done.stdout
    assert yaml.safe_load(done.stdout)["nats"]["token"] == "***"


def test_status_asks_the_agent(config: Path, agent_url: str) -> None:
    config.write_text(SMALLEST + f"http: {agent_url.removeprefix('http://')}\n")
    done = command("rsqlite-agent", "status", "--config", str(config), http_proxy="http://127.0.0.1:9")
    assert (done.returncode, json.loads(done.stdout)) == (0, STATUS)


def test_status_for_people(agent_url: str) -> None:
    done = command("rsqlite", "status", "--url", agent_url.removeprefix("http://"))
    assert done.returncode == 0
    assert {"notes-0", "notes-1", "yes"} <= set(done.stdout.split())
    assert json.loads(command("rsqlite", "status", "--url", agent_url, "--json").stdout) == STATUS


def test_an_agent_that_does_not_answer_is_one_line(config: Path, agent_url: str) -> None:
    config.write_text(SMALLEST + "http: 127.0.0.1:1\n")
    for done in (
        command("rsqlite-agent", "status", "--config", str(config)),
        command("rsqlite", "status", "--url", "http://127.0.0.1:1"),
        command("rsqlite", "status", "--url", agent_url + "/other"),
    ):
        assert (done.returncode, done.stdout) == (1, "")
        assert len(done.stderr.splitlines()) == 1


def test_status_without_http_says_so(config: Path) -> None:
    config.write_text(SMALLEST + "http: off\n")
    done = command("rsqlite-agent", "status", "--config", str(config))
    assert (done.returncode, "http: is 'off'" in done.stderr) == (2, True)


def test_names_with_brackets_are_shown_as_they_are() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    for table in status_tables({"tables": {"[bold]t[/]": {"rows": 1}, "u": {"note": None}}}):
        console.print(table)
    assert "[bold]t[/]" in console.export_text()
