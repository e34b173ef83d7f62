"""What a store can do. Names are paths with `/`; every object is written whole or not at all.

`Blocking` is what a store on a file system or behind a synchronous library implements; `Threaded` makes a `Store` of
it. All operations raise StoreError if the place does not do what it was asked, with its reason in one sentence.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

from replicated_sqlite_agent.errors import AgentError

P = ParamSpec("P")
T = TypeVar("T")

PIECE_BYTES: Final = 1 << 20
"""What a store holds in memory at a time where it reads or writes a file itself."""

Moved = Callable[[int], None]
"""Told how many bytes more have moved; raising in it ends the transfer."""


def unobserved(_: int) -> None:
    """For transfers that nobody watches."""


class StoreError(AgentError):
    """The store cannot be reached, refuses, or gave something else than what is there; trying again may help."""


class ObjectAbsentError(StoreError):
    """The store holds no object of that name."""


class ObjectExistsError(StoreError):
    """`put_new` found an object of that name: somebody else was first. Nothing was written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its whole name in the store, and its size in bytes."""

    name: str
    size: int


class Store(Protocol):
    """A place for objects. Bounded memory: a file of any size moves in pieces."""

    place: str
    """How sentences call it, such as `s3://bucket/prefix`."""

    async def put_file(self, name: str, source: Path, moved: Moved = unobserved) -> None:
        """Store a file; an object of that name is replaced at the end. Raises OSError if the file cannot be read."""

    async def put_bytes(self, name: str, data: bytes) -> None:
        """Store a few bytes; an object of that name is replaced."""

    async def put_new(self, name: str, data: bytes) -> None:
        """Store a few bytes if there is no object of that name, as one step. Raises ObjectExistsError."""

    async def get_file(self, name: str, target: Path, moved: Moved = unobserved) -> None:
        """Write an object to a file. Raises ObjectAbsentError, OSError; what the file then holds is undefined."""

    async def get_bytes(self, name: str) -> bytes:
        """A small object. Raises ObjectAbsentError."""

    async def find(self, prefix: str) -> list[Entry]:
        """The objects whose names begin so, by name; none for a place that does not exist yet."""

    async def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""

    async def sweep(self, older_than_s: float) -> int:
        """Remove what writes that were cut off at least so long ago have left; returns how many there were."""


class Blocking(Protocol):
    """`Store` for a thread: the same operations, each of which blocks."""

    place: str

    def put_file(self, name: str, source: Path, moved: Moved) -> None:
        """See `Store`."""

    def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""

    def put_new(self, name: str, data: bytes) -> None:
        """See `Store`."""

    def get_file(self, name: str, target: Path, moved: Moved) -> None:
        """See `Store`."""

    def get_bytes(self, name: str) -> bytes:
        """See `Store`."""

    def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""

    def delete(self, name: str) -> None:
        """See `Store`."""

    def sweep(self, older_than_s: float) -> int:
        """See `Store`."""


class Threaded:
    """A `Store` whose operations run on threads. A cancelled transfer ends with its next piece."""

    def __init__(self, blocking: Blocking) -> None:
        self._blocking = blocking
        self.place = blocking.place

    async def put_file(self, name: str, source: Path, moved: Moved = unobserved) -> None:
        """See `Store`."""
        await _transfer(self._blocking.put_file, name, source, moved)

    async def put_bytes(self, name: str, data: bytes) -> None:
        """See `Store`."""
        await _on_thread(self._blocking.put_bytes, name, data)

    async def put_new(self, name: str, data: bytes) -> None:
        """See `Store`."""
        await _on_thread(self._blocking.put_new, name, data)

    async def get_file(self, name: str, target: Path, moved: Moved = unobserved) -> None:
        """See `Store`."""
        await _transfer(self._blocking.get_file, name, target, moved)

    async def get_bytes(self, name: str) -> bytes:
        """See `Store`."""
        return await _on_thread(self._blocking.get_bytes, name)

    async def find(self, prefix: str) -> list[Entry]:
        """See `Store`."""
        return await _on_thread(self._blocking.find, prefix)

    async def delete(self, name: str) -> None:
        """See `Store`."""
        await _on_thread(self._blocking.delete, name)

    async def sweep(self, older_than_s: float) -> int:
        """See `Store`."""
        return await _on_thread(self._blocking.sweep, older_than_s)


async def _transfer(operation: Callable[[str, Path, Moved], None], name: str, path: Path, moved: Moved) -> None:
    """Run a transfer on a thread; cancelling the wait makes the thread stop at the next piece."""
    cancelled = threading.Event()

    def watched(count: int) -> None:
        if cancelled.is_set():
            raise StoreError(f"the transfer of {name} was given up")
        moved(count)

    try:
        await _on_thread(operation, name, path, watched)
    finally:
        cancelled.set()


async def _on_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run it on a thread of its own that keeps no process from ending, however long the other side is silent."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[], None]) -> None:
        if not outcome.done():
            set_it()

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - it is the waiting one's
            tell(partial(outcome.set_exception, error))
        else:
            tell(partial(outcome.set_result, result))

    def tell(set_it: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, set_it)

    threading.Thread(target=run, name="store", daemon=True).start()
    return await outcome
