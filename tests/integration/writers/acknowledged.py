"""The book of a writer: one line per change that SQLite acknowledged, written right after the commit.

A line is `kind TAB key TAB value`. Lines go to the file in one `write` and without fsync: a book survives the death
of its writer, and nothing in it is a promise that SQLite had not given before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One acknowledged change. `kind` is insert, update or delete; `value` is empty for a delete."""

    kind: str
    key: str
    value: str


class Book:
    """An append-only file of entries, open for one writer."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, entries: Iterable[Entry]) -> None:
        """Note the changes of one committed transaction."""
        lines = "".join(f"{entry.kind}\t{entry.key}\t{entry.value}\n" for entry in entries)
        os.write(self._file, lines.encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read(path: Path) -> list[Entry]:
    """All entries of a book in order, none if there is no file yet; a half-written last line is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [Entry(*line.split("\t")) for line in whole.splitlines()]
