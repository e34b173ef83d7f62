"""`rsqlite demo` as a new user runs it: it converges, ends cleanly, and says so when something is wrong."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import psutil
import pytest

from integration.cluster import environment, until

COMMAND = str(Path(sys.executable).with_name("rsqlite"))
NODES = ("demo-1", "demo-2", "demo-3")
WRITING = r"\d\d+ written.*\d\d+ written.*\d\d+ written"
"""A line in which each writer has written at least ten rows."""

END_LIMIT_S = 90.0
CTRL_C = b"\x03"


class Demo:
    """One demo in a process of its own, on a terminal or not, and everything that it says."""

    def __init__(self, folder: Path, *arguments: str, terminal: bool = False) -> None:
        self.folder = folder
        ours, theirs = pty.openpty() if terminal else os.pipe()
        if terminal:
            fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.process = subprocess.Popen(
            [COMMAND, "demo", *arguments],
            stdin=theirs if terminal else subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env=environment(TMPDIR=str(folder), TERM="xterm"),
            start_new_session=True,
            preexec_fn=_own_terminal if terminal else None,
        )
        os.close(theirs)
        self._output = ours
        self._said = b""
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        try:
            while data := os.read(self._output, 65536):
                self._said += data
        except OSError:  # how a terminal ends
            pass

    @property
    def said(self) -> str:
        """All its output so far, without line breaks of the terminal."""
        return self._said.decode(errors="replace").replace("\r\n", "\n")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it has said this."""
        found = until(lambda: self._search(pattern), f"the demo says {pattern!r}")
        assert found is not None
        return found

    def _search(self, pattern: str) -> re.Match[str] | None:
        assert self.process.poll() is None, f"the demo ended with {self.process.returncode}:\n{self.said}"
        return re.search(pattern, self.said)

    def press(self, key: bytes) -> None:
        """Press a key on its terminal."""
        os.write(self._output, key)

    def end(self) -> int:
        """Wait for its end: the exit code."""
        code = self.process.wait(END_LIMIT_S)
        self._listener.join()
        return code

    def agents(self) -> dict[str, psutil.Process]:
        """The running agents by node."""
        found = ((process, node) for process in self.processes() for node in NODES)
        return {node: process for process, node in found if _words(process)[-1].endswith(f"/{node}/agent.yaml")}

    def processes(self) -> list[psutil.Process]:
        """Every process whose command line names the folder: agents, writers and NATS, not the demo itself."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.process.pid and any(word.startswith(str(self.folder)) for word in _words(process))
        ]

    def discard(self) -> None:
        """End all, however it is."""
        self.process.kill()
        self.process.wait()
        self._listener.join()
        os.close(self._output)


def _own_terminal() -> None:
    """Make standard input the terminal of the session, so that Ctrl-C there is a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def demos() -> Iterator[list[Demo]]:
    """Those that a test has started; ended if it failed to."""
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.discard()
    assert [process for demo in started for process in demo.processes()] == []


def test_it_converges_and_leaves_nothing_behind(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--seconds", "4")
    demos.append(demo)
    demo.wait_for(WRITING)
    assert len(demo.processes()) == 7, "three agents, three writers and one NATS server"
    assert demo.end() == 0, demo.said
    rows = re.search(r"all three are equal: (\d+) rows", demo.said)
    assert rows is not None, demo.said
    assert int(rows[1]) > 30
    assert demo.processes() == []
    assert list(tmp_path.iterdir()) == []


def test_on_a_terminal_there_is_a_table_and_ctrl_c_ends_it_in_order(tmp_path: Path, demos: list[Demo]) -> None:
    """What a user writes from another terminal, with the very command that the demo shows, is on all three."""
    folder = tmp_path / "databases"
    demo = Demo(folder, "--folder", str(folder), terminal=True)
    demos.append(demo)
    write = demo.wait_for(r"  (\S.*INSERT INTO notes.*)\n")[1]
    subprocess.run(write, shell=True, check=True, timeout=60)
    demo.wait_for(r"contents.*(?s:.*)demo-3.*rows under way")
    demo.press(CTRL_C)
    assert demo.end() == 0, demo.said
    assert "all three are equal: " in demo.said
    for node in NODES:
        with closing(sqlite3.connect(folder / node / "notes.db")) as connection:
            assert connection.execute("SELECT author FROM notes WHERE id = 'hello'").fetchall() == [("me",)], node


def test_copies_that_differ_are_named_and_kept(tmp_path: Path, demos: list[Demo]) -> None:
    """A row that no trigger saw is what no agent can know of."""
    demo = Demo(tmp_path, "--folder", str(tmp_path))
    demos.append(demo)
    demo.wait_for(WRITING)
    with closing(apsw.Connection(str(tmp_path / "demo-2" / "notes.db"))) as connection:
        connection.set_busy_timeout(30_000)
        connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        connection.execute("INSERT INTO notes VALUES ('unseen', 'nobody', 'written with triggers turned off')")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 1, demo.said
    expected = (
        "the copies differ: table notes differs in 1 rows between demo-1 and demo-2, "
        "table notes differs in 1 rows between demo-2 and demo-3"
    )
    assert f"rsqlite: {expected}\n" in demo.said
    assert f"databases and logs are kept in {tmp_path}\n" in demo.said


def test_an_agent_that_dies_is_named_and_the_rest_is_ended(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--folder", str(tmp_path))
    demos.append(demo)
    demo.wait_for(WRITING)
    demo.agents()["demo-3"].kill()
    assert demo.end() == 1, demo.said
    assert "rsqlite: the agent demo-3 ended with exit code -9; the end of its log:\n" in demo.said
    assert demo.processes() == []


def test_ctrl_c_before_the_agents_are_ready_leaves_nothing_behind(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    demo.wait_for("starting three agents")
    until(lambda: demo.processes(), "the first agent is there")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 1, demo.said
    assert "stopped before the agents were ready" in demo.said
    assert list(tmp_path.iterdir()) == []


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path)
    demos.append(demo)
    demo.wait_for(WRITING)
    demo.agents()["demo-2"].suspend()  # so that the copies cannot become equal
    demo.process.send_signal(signal.SIGINT)
    demo.wait_for("waiting until everything is everywhere")
    demo.process.send_signal(signal.SIGINT)
    assert demo.end() == 1, demo.said
    assert demo.said.endswith("broken off\n")
    assert list(tmp_path.iterdir()) == []


def test_no_process_outlives_a_killed_demo(tmp_path: Path, demos: list[Demo]) -> None:
    demo = Demo(tmp_path, "--folder", str(tmp_path))
    demos.append(demo)
    demo.wait_for(WRITING)
    demo.process.kill()
    until(lambda: demo.processes() == [], "agents, writers and NATS have ended")
