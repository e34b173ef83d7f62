"""Encryption in the age format, version 1 (age-encryption.org/v1), with X25519 recipients: `age -d` opens what this
writes.

A file is a header with the file key, wrapped for each recipient, and a body of pieces of 64 KiB, each sealed with
ChaCha20-Poly1305, the last one marked as such: a changed, missing or further byte is noticed.
"""

from __future__ import annotations

import base64
import hmac
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from replicated_sqlite_agent.errors import AgentError, ConfigurationError

_VERSION: Final = b"age-encryption.org/v1"
_LABEL: Final = b"age-encryption.org/v1/X25519"
_PIECE: Final = 64 * 1024
_TAG: Final = 16
_HEADER_MOST: Final = 64 * 1024
_PUBLIC: Final = "age"
_SECRET: Final = "age-secret-key-"
_ZERO_NONCE: Final = bytes(12)


class SealedError(AgentError):
    """What was encrypted cannot be opened: no key fits, or it is not what was written."""


# ---- keys ------------------------------------------------------------------------------------------------------------


def new_identity() -> tuple[str, str]:
    """A new secret key and its public one, as text: 'AGE-SECRET-KEY-1…', 'age1…'."""
    secret = os.urandom(32)
    public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return _bech32(_SECRET, secret).upper(), _bech32(_PUBLIC, public)


def read_recipients(texts: Sequence[str], file: Path | None) -> tuple[bytes, ...]:
    """Public keys from settings and from a file with one per line. Raises ConfigurationError."""
    return tuple(_key(_PUBLIC, text, "a public key 'age1…'") for text in (*texts, *_lines(file)))


def read_identities(file: Path | None) -> tuple[bytes, ...]:
    """Secret keys from a file as age-keygen writes it, one per line; none without a file. Raises ConfigurationError."""
    return tuple(_key(_SECRET, text, "a secret key 'AGE-SECRET-KEY-1…'") for text in _lines(file))


def _lines(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: the keys cannot be read: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigurationError(f"{file}: there is no key in this file; write one per line")
    return keys


def _key(prefix: str, text: str, expected: str) -> bytes:
    key = _from_bech32(prefix, text.strip())
    if key is None or len(key) != 32:
        # The text is not repeated: it may be a secret key in the wrong place.
        raise ConfigurationError(f"a key for encryption is not {expected}: check that it was copied whole")
    return key


_BECH32: Final = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def _bech32(prefix: str, data: bytes) -> str:
    digits = _regroup(data, 8, 5, pad=True)
    assert digits is not None
    check = _polymod([*_spread(prefix), *digits, 0, 0, 0, 0, 0, 0]) ^ 1
    digits += [(check >> 5 * (5 - i)) & 31 for i in range(6)]
    return prefix + "1" + "".join(_BECH32[digit] for digit in digits)


def _from_bech32(prefix: str, text: str) -> bytes | None:
    """The bytes, None if the text is something else or was damaged."""
    if text not in (text.lower(), text.upper()):
        return None
    head, _, tail = text.lower().rpartition("1")
    digits = [_BECH32.find(char) for char in tail]
    if head != prefix or len(digits) < 6 or -1 in digits or _polymod([*_spread(prefix), *digits]) != 1:
        return None
    data = _regroup(bytes(digits[:-6]), 5, 8, pad=False)
    return bytes(data) if data is not None else None


def _spread(prefix: str) -> list[int]:
    return [ord(char) >> 5 for char in prefix] + [0] + [ord(char) & 31 for char in prefix]


def _polymod(values: Iterable[int]) -> int:
    check = 1
    for value in values:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if (top >> i) & 1 else 0
    return check


def _regroup(data: bytes, have: int, want: int, *, pad: bool) -> list[int] | None:
    """Bits in groups of another size; None if the rest is no proper padding."""
    bits = count = 0
    groups: list[int] = []
    for value in data:
        bits, count = (bits << have) | value, count + have
        while count >= want:
            count -= want
            groups.append(bits >> count)
            bits &= (1 << count) - 1
    if pad:
        return [*groups, bits << (want - count)] if count else groups
    return groups if count < have and not bits else None


# ---- header ----------------------------------------------------------------------------------------------------------


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)


def _wrap(file_key: bytes, recipient: bytes) -> bytes:
    """The stanza that gives the file key to the holder of a secret key."""
    once = X25519PrivateKey.generate()
    share = once.public_key().public_bytes_raw()
    shared = once.exchange(X25519PublicKey.from_public_bytes(recipient))
    body = ChaCha20Poly1305(_derive(shared, share + recipient, _LABEL)).encrypt(_ZERO_NONCE, file_key, None)
    return b"-> X25519 " + _b64(share) + b"\n" + _b64(body) + b"\n"


def _unwrap(share: bytes, body: bytes, identities: Sequence[bytes]) -> bytes | None:
    for secret in identities:
        key = X25519PrivateKey.from_private_bytes(secret)
        public = key.public_key().public_bytes_raw()
        try:
            shared = key.exchange(X25519PublicKey.from_public_bytes(share))
            wrap = ChaCha20Poly1305(_derive(shared, share + public, _LABEL))
            return wrap.decrypt(_ZERO_NONCE, body, None)
        except (InvalidTag, ValueError):
            continue
    return None


def _mac(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), header, "sha256")


def _b64(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _unb64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)


# ---- files -----------------------------------------------------------------------------------------------------------


class Sealer:
    """Encrypts what is written to it into `out`. Call `close` at the end: it writes the last piece."""

    def __init__(self, out: IO[bytes], recipients: Sequence[bytes]) -> None:
        file_key, nonce = os.urandom(16), os.urandom(16)
        header = _VERSION + b"\n" + b"".join(_wrap(file_key, recipient) for recipient in recipients) + b"---"
        out.write(header + b" " + _b64(_mac(file_key, header)) + b"\n" + nonce)
        self._out, self._pieces = out, _Pieces(_derive(file_key, nonce, b"payload"))
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes; whole pieces go out once it is known that they are not the last."""
        self._held += data
        while len(self._held) > _PIECE:
            self._out.write(self._pieces.seal(bytes(self._held[:_PIECE]), last=False))
            del self._held[:_PIECE]
        return len(data)

    def close(self) -> None:
        """Write the last piece. Leaves `out` open."""
        self._out.write(self._pieces.seal(bytes(self._held), last=True))
        self._held.clear()


@dataclass(slots=True)
class _Pieces:
    """The cipher of the body: a counter and the mark of the last piece are the nonce."""

    key: bytes
    number: int = 0

    def _nonce(self, last: bool) -> bytes:
        self.number += 1
        return (self.number - 1).to_bytes(11, "big") + (b"\1" if last else b"\0")

    def seal(self, piece: bytes, *, last: bool) -> bytes:
        """Encrypt the next piece."""
        return ChaCha20Poly1305(self.key).encrypt(self._nonce(last), piece, None)

    def open(self, piece: bytes, *, last: bool) -> bytes:
        """Decrypt the next piece. Raises SealedError."""
        try:
            return ChaCha20Poly1305(self.key).decrypt(self._nonce(last), piece, None)
        except InvalidTag as error:
            raise SealedError("an encrypted snapshot is damaged: it is not what was written") from error


def opened(pieces: Iterable[bytes], identities: Sequence[bytes]) -> Iterator[bytes]:
    """The plain bytes of an encrypted file that comes in pieces of any size. Raises SealedError."""
    source = _Source(iter(pieces))
    if not identities:
        raise SealedError("this snapshot is encrypted: give the file with a secret key that can open it (--identity)")
    file_key = _read_header(source, identities)
    body = _Pieces(_derive(file_key, source.exactly(16), b"payload"))
    piece = source.most(_PIECE + _TAG)
    while True:
        following = source.most(_PIECE + _TAG)
        yield body.open(piece, last=not following)
        if not following:
            return
        piece = following


def _read_header(source: _Source, identities: Sequence[bytes]) -> bytes:
    """The file key. Raises SealedError."""
    header = line = source.line()
    if line != _VERSION + b"\n":
        raise SealedError("an encrypted snapshot does not begin as an age file does: it is damaged")
    file_key: bytes | None = None
    try:
        while not (line := source.line()).startswith(b"--- ") and len(header) <= _HEADER_MOST:
            header += line
            words = line.split()
            if line.startswith(b"-> X25519 ") and len(words) == 3:
                body = source.line()
                header += body
                file_key = file_key or _unwrap(_unb64(words[2]), _unb64(body.strip()), identities)
        mac = _unb64(line[4:].strip())
    except ValueError as error:
        raise SealedError("the header of an encrypted snapshot is damaged") from error
    if file_key is None:
        raise SealedError("none of the given secret keys can open this snapshot; it was encrypted for others")
    if not hmac.compare_digest(mac, _mac(file_key, header + b"---")):
        raise SealedError("the header of an encrypted snapshot is damaged")
    return file_key


class _Source:
    """Reads by line and by count from pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._held = pieces, bytearray()

    def _fill(self) -> bool:
        piece = next(self._pieces, None)
        self._held += piece or b""
        return piece is not None

    def _take(self, count: int) -> bytes:
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken

    def line(self) -> bytes:
        """Up to and with the next line feed. Raises SealedError if there is none within the size of a header."""
        while (end := self._held.find(b"\n")) < 0:
            if len(self._held) > _HEADER_MOST or not self._fill():
                raise SealedError("the header of an encrypted snapshot is damaged")
        return self._take(end + 1)

    def most(self, count: int) -> bytes:
        """So many bytes, fewer at the end."""
        while len(self._held) < count and self._fill():
            continue
        return self._take(count)

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises SealedError at the end."""
        taken = self.most(count)
        if len(taken) < count:
            raise SealedError("an encrypted snapshot ends too early")
        return taken
