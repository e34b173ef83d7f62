"""Chunks -> whole groups. Keeps unfinished groups aside; holds no more than one unfinished group of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from replicated_sqlite_agent.counters import Counters
from replicated_sqlite_agent.spool import spool
from replicated_sqlite_agent.wire import Chunk

UNFINISHED_MS_MAX = 600_000
"""An unfinished group older than this is dropped: its run always sends a group again whole."""


@dataclass(slots=True)
class Arrived:
    """A whole group as it came from the stream. ``body`` is at its beginning."""

    run: int
    id: bytes
    lo: int
    hi: int
    size: int
    body: BinaryIO


@dataclass(slots=True)
class _Unfinished:
    id: bytes
    count: int
    first_sequence: int
    before: bytes | None
    began_ms: int
    size: int = 0
    seen: set[int] = field(default_factory=set)
    parts: dict[int, bytes] = field(default_factory=dict)
    next: int = 0
    body: BinaryIO | None = None


class Assembler:
    """Takes chunks in order of the stream."""

    def __init__(self, spool: Path, counters: Counters) -> None:
        self._spool, self._counters = spool, counters
        self._unfinished: dict[int, _Unfinished] = {}
        self._sequence = 0
        self._last_id: bytes | None = None
        self.previous: bytes | None = None
        """Group id of the message before the last one."""

    def reset(self, sequence: int, group_id: bytes | None) -> None:
        """Begin again after this stream sequence."""
        for run in list(self._unfinished):
            self._drop(run)
        self._sequence, self._last_id, self.previous = sequence, group_id, None

    @property
    def position(self) -> tuple[int, bytes | None]:
        """(stream sequence, id of the message there) up to which nothing is needed any more.

        While a group is unfinished that is before its first chunk.
        """
        oldest = min(self._unfinished.values(), key=lambda u: u.first_sequence, default=None)
        if oldest is None:
            return self._sequence, self._last_id
        return oldest.first_sequence - 1, oldest.before

    def skip(self, sequence: int) -> None:
        """A message that cannot be read: counted as consumed."""
        self._reached(sequence, None)

    def pass_over(self, sequence: int, group_id: bytes) -> None:
        """A message of this agent's own run: nothing to assemble."""
        self._reached(sequence, group_id)

    def _reached(self, sequence: int, group_id: bytes | None) -> None:
        self.previous = self._last_id
        self._sequence, self._last_id = sequence, group_id

    def add(self, sequence: int, time_ms: int, chunk: Chunk) -> Arrived | None:
        """Take one chunk; returns the group that it completes."""
        before = self._last_id
        self._reached(sequence, chunk.group)
        for run in [run for run, u in self._unfinished.items() if time_ms - u.began_ms > UNFINISHED_MS_MAX]:
            self._drop(run)
        unfinished = self._unfinished.get(chunk.run)
        if unfinished is not None and unfinished.id != chunk.group:
            self._drop(chunk.run)  # the run has begun a new encoding: the old one will never be finished
            unfinished = None
        if chunk.n == 1:
            return Arrived(chunk.run, chunk.group, chunk.lo, chunk.hi, len(chunk.body), self._body(chunk.body))
        if unfinished is None:
            unfinished = _Unfinished(chunk.group, chunk.n, sequence, before, time_ms, body=self._body(b""))
            self._unfinished[chunk.run] = unfinished
        self._counters.chunks_buffered += 1
        return self._put(chunk, unfinished)

    def _put(self, chunk: Chunk, unfinished: _Unfinished) -> Arrived | None:
        if chunk.i in unfinished.seen:
            return None
        unfinished.seen.add(chunk.i)
        unfinished.parts[chunk.i] = chunk.body
        assert unfinished.body is not None
        while unfinished.next in unfinished.parts:
            part = unfinished.parts.pop(unfinished.next)
            unfinished.body.write(part)
            unfinished.size += len(part)
            unfinished.next += 1
        if unfinished.next < unfinished.count:
            return None
        del self._unfinished[chunk.run]
        unfinished.body.seek(0)
        return Arrived(chunk.run, chunk.group, chunk.lo, chunk.hi, unfinished.size, unfinished.body)

    def _body(self, first: bytes) -> BinaryIO:
        body = spool(self._spool)
        body.write(first)
        body.seek(0)
        return body

    def _drop(self, run: int) -> None:
        unfinished = self._unfinished.pop(run)
        self._counters.chunks_dropped += len(unfinished.seen)
        if unfinished.body is not None:
            unfinished.body.close()
