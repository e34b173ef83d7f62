"""A database file as parts for a store and back: compressed, encrypted if asked for, cut. Memory: a few pieces."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, cast

import zstandard

from replicated_sqlite_agent.snapshots.age import Sealer, opened
from replicated_sqlite_agent.snapshots.documents import Manifest, Part, SnapshotDamagedError

PIECE_BYTES: Final = 1 << 20
PART_BYTES: Final = 64 << 20
"""Largest part: what is sent again after a cut. 10,000 of them are 625 GiB of packed bytes."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What packing a file gave: the SHA-256 of the plain file, and the parts that lie in the folder."""

    sha256: str
    parts: list[Part]

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)


def pack(source: Path, folder: Path, recipients: Sequence[bytes] = (), part_bytes: int = PART_BYTES) -> Packed:
    """Compress a file, encrypt it for the recipients if there are any, cut it into files in ``folder`` (emptied)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    digest = hashlib.sha256()
    with _Parts(folder, part_bytes) as parts:
        sealer = Sealer(cast(IO[bytes], parts), recipients) if recipients else None
        compressor = zstandard.ZstdCompressor(level=1, threads=-1, write_checksum=True)
        out = cast(IO[bytes], sealer or parts)  # `write` is all that is asked of it
        with source.open("rb") as plain, compressor.stream_writer(out, closefd=False) as packed:
            while piece := plain.read(PIECE_BYTES):
                digest.update(piece)
                packed.write(piece)
        if sealer is not None:
            sealer.close()
    return Packed(digest.hexdigest(), parts.done)


class _Parts:
    """A file to write to that lies in several ones of at most ``part_bytes``."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._most = folder, part_bytes
        self.done: list[Part] = []
        self._out: IO[bytes] | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_part()

    def write(self, data: bytes) -> int:
        """Append."""
        rest = memoryview(data)
        while rest:
            if self._out is None:
                self._out = (self._folder / self._name).open("wb")
            piece = rest[: self._most - self._size]
            self._out.write(piece)
            self._digest.update(piece)
            self._size += len(piece)
            rest = rest[len(piece) :]
            if self._size == self._most:
                self._end_part()
        return len(data)

    def flush(self) -> None:
        """Nothing is held back here."""

    @property
    def _name(self) -> str:
        return f"part-{len(self.done) + 1:05d}"

    def _end_part(self) -> None:
        if self._out is not None:
            self._out.close()
            self.done.append(Part(self._name, self._size, self._digest.hexdigest()))
            self._out, self._digest, self._size = None, hashlib.sha256(), 0


def has_digest(path: Path, part: Part) -> bool:
    """Whether a file is this part."""
    if not path.exists() or path.stat().st_size != part.bytes:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == part.sha256


def unpack(manifest: Manifest, folder: Path, target: Path, identities: Sequence[bytes] = ()) -> None:
    """Make the database file of the parts in ``folder``, each removed once it is read.

    Raises SnapshotDamagedError if the content is not the manifest's, SealedError if it cannot be decrypted.
    """
    pieces = _read_parts(manifest, folder)
    if manifest.encryption is not None:
        pieces = opened(pieces, identities)
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("wb") as out:
            packed = cast(IO[bytes], _Readable(pieces))
            for piece in zstandard.ZstdDecompressor().read_to_iter(packed, write_size=PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
                if size > manifest.bytes:
                    break
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
    except zstandard.ZstdError as error:
        raise SnapshotDamagedError(f"snapshot {manifest.name} cannot be decompressed: {error}") from error
    if size != manifest.bytes or digest.hexdigest() != manifest.sha256:
        raise SnapshotDamagedError(f"snapshot {manifest.name} does not have the digest that its manifest names")


def _read_parts(manifest: Manifest, folder: Path) -> Iterator[bytes]:
    for part in manifest.parts:
        path = folder / part.name
        with path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
        path.unlink()


class _Readable:
    """Pieces of any size as a file to read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, b""

    def read(self, count: int) -> bytes:
        """At most so many bytes; none at the end."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._held = piece
        taken, self._held = self._held[:count], self._held[count:]
        return taken
