"""Tells the outbound thread that somebody may have committed: inotify on the database's folder, polling elsewhere.

A commit is written before it is visible (with ``synchronous=FULL`` one fsync before), so an event means: look now, and
look again in 0.5, 1, 2 … 128 ms: a busy machine may stop the writer in between. A watcher that looks once per event
misses the last commit for ever.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "linux":
    from inotify_simple import INotify, flags

FIRST_SETTLE_S = 0.0005
"""Wait after an event that showed nothing yet, whatever happens: one commit comes as several events."""

SETTLE_MS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Further waits between looks, until the next event at most."""

TICK_S = 0.5
"""Look at least this often: a net under lost events."""

POLL_S = 0.01
"""Where there is no inotify."""


class Watcher:
    """Used by one thread; `poke` may be called from any."""

    def __init__(self, database: Path) -> None:
        self._name = database.name.encode()
        self._poked_out, self._poked_in = os.pipe()
        os.set_blocking(self._poked_out, False)
        os.set_blocking(self._poked_in, False)
        self._lock = threading.Lock()
        self._closed = False
        self._inotify = INotify() if sys.platform == "linux" else None
        if self._inotify is not None:
            self._inotify.add_watch(str(database.parent), flags.MODIFY | flags.CREATE | flags.MOVED_TO | flags.DELETE)

    def poke(self) -> None:
        """Wake the waiting thread."""
        with self._lock:
            if not self._closed:
                try:
                    os.write(self._poked_in, b"x")
                except BlockingIOError:
                    return  # the pipe is full of pokes: it will wake

    def looks(self) -> Iterator[bool]:
        """Yields each time it is worth to look. The consumer sends back nothing; it calls `found` when it saw news."""
        while not self._closed:
            self._found = False
            event = self._wait(TICK_S if self._inotify is not None else POLL_S)
            yield event
            if not event:
                continue
            if not self._found:
                time.sleep(FIRST_SETTLE_S)
                yield event
            for pause in SETTLE_MS:
                if self._found or self._closed:
                    break
                self._wait(pause / 1000)
                yield event

    def found(self) -> None:
        """The last look showed news: the event is explained."""
        self._found = True

    def _wait(self, timeout_s: float) -> bool:
        """Whether something happened to the database's files (or somebody poked) within the time."""
        ends = time.monotonic() + timeout_s
        while (left := ends - time.monotonic()) > 0:
            watched = [self._poked_out] if self._inotify is None else [self._poked_out, self._inotify.fileno()]
            ready, _, _ = select.select(watched, [], [], left)
            if self._drain(ready):
                return True
        return False

    def _drain(self, ready: list[int]) -> bool:
        happened = False
        if self._poked_out in ready:
            os.read(self._poked_out, 4096)
            happened = True
        if self._inotify is not None and self._inotify.fileno() in ready:
            # Each event ends with the name of its file. Another file whose name contains ours costs a look.
            happened = self._name in os.read(self._inotify.fileno(), 65_536) or happened
        return happened

    def close(self) -> None:
        """End `looks`."""
        with self._lock:
            if self._closed:
                return
            os.write(self._poked_in, b"x")
            self._closed = True

    def release(self) -> None:
        """Close the descriptors; after the thread has ended."""
        os.close(self._poked_in)
        os.close(self._poked_out)
        if self._inotify is not None:
            self._inotify.close()
