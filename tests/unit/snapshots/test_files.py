"""What is written to a store: documents with checksums, packed parts, age files."""

from __future__ import annotations

import base64
import io
import os
import random
from pathlib import Path

import pytest

from replicated_sqlite_agent.errors import ConfigurationError
from replicated_sqlite_agent.snapshots import age, packing
from replicated_sqlite_agent.snapshots.documents import Identity, SnapshotDamagedError, decode, encode

SECRET = "AGE-SECRET-KEY-1EPAXPUF6F0ACPC2ZA7AQ2GD2HKCZ5SPNARJRRH4T00J5MKQUC8RQNNT4YW"
PUBLIC = "age1u26uw9cf7k2evns9356sapn3de3yuae9eq9mpauk6k30x0v665lq9aszc3"
BY_ANOTHER_PROGRAM = (
    "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSB1dmtiYzJXRDA4dlJRc3B3dmpwaGxZM0V2S3ZKd3dFWERsa2ZrYTFPQWxFCmtNTE83anpq"
    "a3Z5L1RvdDlwWm5aNFRsVTRsTCszOThEYVd3ajRsMEF4OUkKLT4gL2QyTjMtZ3JlYXNlIC4vT04KQ1NVCi0tLSBaNTlNQW9LMm1zUlNGa2RaUUFx"
    "THJvdGRoVm5DMnQwZHBtblFLOXZpQnJNCj5HRQj/kkx+HjzjaArDMQLkIhSEcQtnByFHmLXvgXxtMjvutWmwRT9UopvAquU="
)
"""'hello from age' for PUBLIC, made by pyrage, an implementation of age in Rust."""


@pytest.fixture
def identities(tmp_path: Path) -> tuple[bytes, ...]:
    path = tmp_path / "key"
    path.write_text(f"# created by hand\n# public key: {PUBLIC}\n{SECRET}\n")
    return age.read_identities(path)


def sealed(data: bytes, *recipients: str) -> bytes:
    out = io.BytesIO()
    sealer = age.Sealer(out, age.read_recipients(recipients, None))
    for at in range(0, len(data), 10_000):
        sealer.write(data[at : at + 10_000])
    sealer.close()
    return out.getvalue()


def test_a_file_of_another_age_program_opens(identities: tuple[bytes, ...]) -> None:
    assert b"hello from age" == b"".join(age.opened([base64.b64decode(BY_ANOTHER_PROGRAM)], identities))


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072, 300_000])
def test_what_is_sealed_opens(identities: tuple[bytes, ...], size: int) -> None:
    data = os.urandom(size)
    other = age.new_identity()[1]
    packed = sealed(data, other, PUBLIC)
    assert data == b"".join(age.opened((packed[at : at + 999] for at in range(0, len(packed), 999)), identities))


def test_a_changed_cut_or_extended_file_does_not_open(identities: tuple[bytes, ...]) -> None:
    packed, chance = sealed(os.urandom(150_000), PUBLIC), random.Random(1)
    broken = [packed[:-1], packed[: -16 - 150_000 % 65_536], packed + b"x", packed[:100], b""]
    for _ in range(100):
        at = chance.randrange(len(packed))
        broken.append(packed[:at] + bytes([packed[at] ^ 1 << chance.randrange(8)]) + packed[at + 1 :])
    found = 0
    for data in broken:
        with pytest.raises(age.SealedError):
            b"".join(age.opened([data], identities))
        found += 1
    assert 105 == found


@pytest.mark.parametrize("text", [SECRET, PUBLIC[:-1], PUBLIC[:-1] + "q", PUBLIC.replace("u26", "U26"), "age1q"])
def test_a_wrong_public_key_is_told_without_showing_it(text: str) -> None:
    with pytest.raises(ConfigurationError, match="copied whole") as raised:
        age.read_recipients([text], None)
    assert text not in str(raised.value)


def test_every_changed_bit_of_a_document_is_noticed() -> None:
    document = encode(Identity("notes", "0123456789abcdef", "a", 1_700_000_000_000))
    assert Identity("notes", "0123456789abcdef", "a", 1_700_000_000_000) == decode("x", document, Identity)
    found = 0
    for at in range(len(document)):
        for bit in range(8):
            changed = document[:at] + bytes([document[at] ^ 1 << bit]) + document[at + 1 :]
            with pytest.raises(SnapshotDamagedError):
                decode("x", changed, Identity)
            found += 1
    assert len(document) * 8 == found


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_packed_files_are_cut_into_parts(tmp_path: Path, size: int) -> None:
    source, folder = tmp_path / "source", tmp_path / "parts"
    source.write_bytes(os.urandom(size))
    packed = packing.pack(source, folder, (), 1000)
    sizes = [part.bytes for part in packed.parts]
    assert all(size == 1000 for size in sizes[:-1])
    assert 0 < sizes[-1] <= 1000
    assert [f"part-{n + 1:05d}" for n in range(len(sizes))] == sorted(path.name for path in folder.iterdir())
    assert all(packing.has_digest(folder / part.name, part) for part in packed.parts)
