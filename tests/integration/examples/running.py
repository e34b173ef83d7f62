"""An example of the repository, run as a stranger runs it: its folder copied, its `run.py` started."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from integration.cluster import DEADLINE_S, Dump, differences, dump, environment, integrity, until

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@dataclass(frozen=True)
class Replica:
    """One node of a running example."""

    name: str
    folder: Path
    database: Path
    app_url: str
    agent_url: str

    def status(self) -> Any:
        """The document of the agent's /v1/status."""
        return self._ask("/v1/status")

    def position(self) -> str:
        """The token of everything that its database holds now."""
        return str(self._ask("/v1/position")["token"])

    def wait(self, token: str, timeout: float = DEADLINE_S) -> None:
        """Return once all that the token names is in its database."""
        self._ask("/v1/wait?" + urlencode({"token": token, "timeout": f"{timeout:g}"}), timeout + 10)

    def complaints(self) -> list[str]:
        """Lines of the agent's log, since it caught up last, that are more than information.

        Before that it may say that it tries again: to reach NATS, or to fetch a copy of which a newer one came.
        """
        lines = (self.folder / "agent.log").read_text(encoding="utf-8").splitlines()
        entries = [json.loads(line) for line in lines]
        caught_up = max(at for at, entry in enumerate(entries) if entry["event"] == "caught up")
        return [line for line in lines[caught_up:] if json.loads(line)["level"] not in ("debug", "info")]

    def _ask(self, path: str, timeout: float = 10) -> Any:
        with closing(http.client.HTTPConnection(urlsplit(self.agent_url).netloc, timeout=timeout)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, f"{self.name} {path}: {response.status} {body!r}"
            return json.loads(body)


class Example:
    """A copy of one example in `folder`, running within the `with` block. Its `run.py` must end with 0."""

    def __init__(self, name: str, folder: Path, database: str) -> None:
        """`database`: name of the database file in each node's folder."""
        self.folder = folder / name
        self._database = database
        self._output = folder / "output.txt"
        ours = shutil.ignore_patterns("data", "__pycache__")
        shutil.copytree(EXAMPLES / name, self.folder, ignore=ours)
        self.replicas: list[Replica] = []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.logs())
        self.stop()

    def start(self) -> None:
        """Start `run.py` and wait until it says that all run."""
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, str(self.folder / "run.py"), "--free-ports"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"),
            )
        until(self._runs, "the example runs", 3 * DEADLINE_S)  # ten processes, some after others
        lines = re.findall(r"^(\w): \w+ (http://[^/]+)/\S*\s+agent (http://[^/]+)/", self._said(), re.MULTILINE)
        self.replicas = [self._replica(*found) for found in lines]

    def stop(self) -> None:
        """Ctrl-C."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        code = self._process.wait(2 * DEADLINE_S)
        assert code == 0, f"run.py ended with {code}: {self._said()}\n{self.logs()}"

    def logs(self) -> str:
        """The ends of all logs."""
        found = sorted(self.folder.glob("data/*/*.log"))
        return "\n".join(f"--- {path}\n{path.read_text(encoding='utf-8', errors='replace')[-3000:]}" for path in found)

    def _runs(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"run.py ended: {self._said()}\n{self.logs()}"
        return "Ctrl-C" in self._said()

    def _said(self) -> str:
        return self._output.read_text(encoding="utf-8")

    def _replica(self, name: str, app_url: str, agent_url: str) -> Replica:
        folder = self.folder / "data" / name
        return Replica(name, folder, folder / self._database, app_url, agent_url)

    def converge(self) -> None:
        """Wait until every replica has everything that any of them holds, and none of them has moved meanwhile."""

        def stands_still() -> bool:
            tokens = [replica.position() for replica in self.replicas]
            for replica in self.replicas:
                for token in tokens:
                    replica.wait(token)
            return tokens == [replica.position() for replica in self.replicas]

        until(stands_still, "the positions stand still")

    def assert_equal(self, local: frozenset[str]) -> Dump:
        """Converge; then all files hold the same rows but for `local` tables, and no agent complains. The rows."""
        self.converge()
        first, *others = [
            {table: rows for table, rows in dump(replica.database).items() if table not in local}
            for replica in self.replicas
        ]
        for other in others:
            assert not differences(first, other), "\n".join(differences(first, other))
        for replica in self.replicas:
            assert integrity(replica.database) == "ok", replica.name
            assert [] == replica.complaints(), replica.name
        return first
