"""Three Django processes on three replicas of db.sqlite3, on this machine. Ctrl-C ends them all.

python run.py                the ports of the agent-*.yaml files, Django on 8000, 8001 and 8002
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
SUPERUSER = ("admin", "change-me-please")
START_LIMIT_S = 60
STOP_LIMIT_S = 30


@dataclass
class Node:
    """One Django with its agent, and what runs of it."""

    name: str
    app_port: int
    agent_port: int
    agent: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    app: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """Where its database and its logs are."""
        return DATA / self.name

    @property
    def database(self) -> Path:
        """The file that Django opens and the agent replicates."""
        return self.folder / "db.sqlite3"


def start_agent(node: Node, nats_port: int) -> None:
    """Start the agent and wait until Django may start. The environment wins over the file: so ports get in."""
    ports = {"RSQLITE_HTTP": f"127.0.0.1:{node.agent_port}"}
    if node.name == "a":
        ports["RSQLITE_NATS_EMBEDDED_LISTEN"] = f"127.0.0.1:{nats_port}"
    else:
        ports["RSQLITE_NATS_SERVERS"] = json.dumps([f"nats://127.0.0.1:{nats_port}"])
    command = [program("rsqlite-agent"), "run", "--config", str(HERE / f"agent-{node.name}.yaml")]
    log = node.folder / "agent.log"
    node.agent = start(command, log, ports)
    # 200 once the application may start: the file is there and up to date, or this is the node that shall make it.
    if not answers(f"http://127.0.0.1:{node.agent_port}/startupz", node.agent):
        sys.exit(f"the agent of {node.name} did not start; see {log}")


def migrate(node: Node) -> None:
    """Make or upgrade the tables; the very first time, make an administrator too."""
    is_new = not node.database.exists()
    manage(node, "migrate", "--verbosity=0")
    if is_new:
        manage(node, "createsuperuser", "--noinput", "--email=admin@example.com")


def manage(node: Node, *command: str) -> None:
    """Run a command of manage.py to its end."""
    log = node.folder / "django.log"
    process = start([sys.executable, "manage.py", *command], log, django_environment(node))
    if process.wait():
        sys.exit(f"manage.py {command[0]} of {node.name} failed; see {log}")


def start_django(node: Node) -> None:
    """Start Django as always, only with another database, and wait until it serves."""
    command = [sys.executable, "manage.py", "runserver", "--noreload", f"127.0.0.1:{node.app_port}"]
    log = node.folder / "django.log"
    node.app = start(command, log, django_environment(node))
    if not answers(f"http://127.0.0.1:{node.app_port}/admin/login/", node.app):
        sys.exit(f"Django {node.name} did not start; see {log}")


def django_environment(node: Node) -> dict[str, str]:
    """What settings.py and createsuperuser read."""
    name, password = SUPERUSER
    superuser = {"DJANGO_SUPERUSER_USERNAME": name, "DJANGO_SUPERUSER_PASSWORD": password}
    return {"DJANGO_DATABASE": str(node.database)} | superuser


def program(name: str) -> str:
    """The command of this virtual environment, or else of the PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        sys.exit(f"{name} is not installed: pip install 'replicated-sqlite[agent]' django")
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
    start_node(first, nats_port)
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda node: start_node(node, nats_port), others))


def start_node(node: Node, nats_port: int) -> None:
    """The agent before everything that opens the database."""
    start_agent(node, nats_port)
    migrate(node)
    start_django(node)


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
    fixed = [8000, 8081, 8001, 8082, 8002, 8083, 4222]
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
            print(f"{node.name}: Django http://127.0.0.1:{node.app_port}/admin/", end="   ")
            print(f"agent http://127.0.0.1:{node.agent_port}/v1/status")
        print(f"Log in anywhere as {SUPERUSER[0]} with the password {SUPERUSER[1]}. Ctrl-C ends.", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")
    finally:
        stop_all(nodes)


if __name__ == "__main__":
    main()
