"""Real servers for tests, on ports that the system chose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from replicated_sqlite_agent.stream.embedded import server_binary

START_LIMIT_S = 20.0
"""A busy machine may need seconds; only a broken one needs this long."""


class NatsServer:
    """A nats-server with JetStream in `folder`. The first start chooses the port, every later one keeps it."""

    def __init__(self, folder: Path, extra: str = "", sync_always: bool = False, max_file: str = "8GB") -> None:
        """`extra`: further lines of the configuration file, such as users and permissions."""
        self.folder = folder
        self.extra = extra
        self.port = 0
        self._sync = "sync_interval: always" if sync_always else ""
        self._max_file = max_file
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> NatsServer:
        """Start and wait until it takes connections."""
        assert not self.running
        config = self.folder / "server.conf"
        jetstream = [f"store_dir: {json.dumps(str(self.folder))}", f"max_file_store: {self._max_file}", self._sync]
        lines = [f'listen: "127.0.0.1:{self.port or -1}"', "jetstream {", *jetstream, "}", self.extra]
        config.write_text("\n".join(lines))
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), "-c", config, "--ports_file_dir", self.folder], stdout=log, stderr=log
            )
        self.port = self._wait_for_port()
        return self

    def stop(self) -> None:
        """Ask it to end and wait. A server that is not running is left so."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9 and wait."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port and folder."""
        self.start()

    def pause(self) -> None:
        """Stop its processing and wait until all its threads stand: the connections stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """End a pause."""
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        # A paused server takes the signal only after this.
        self._process.send_signal(signal.SIGCONT)
        self._process.wait(START_LIMIT_S)
        self._process = None

    def _wait_for_port(self) -> int:
        """The port from the file that the server writes once it listens."""
        assert self._process is not None
        path = self.folder / f"nats-server_{self._process.pid}.ports"
        deadline = time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                urls = json.loads(path.read_text())["nats"]
                return int(urls[0].rpartition(":")[2])
            except (FileNotFoundError, ValueError, KeyError, IndexError):
                time.sleep(0.01)
        self.kill()
        raise AssertionError(f"nats-server did not start; its log:\n{(self.folder / 'server.log').read_text()}")
