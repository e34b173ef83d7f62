"""Which snapshots stay, and which one is used."""

from __future__ import annotations

import pytest

from replicated_sqlite_agent.snapshots.documents import Manifest, TableFacts, Verification
from replicated_sqlite_agent.snapshots.retention import Held, best, is_smaller, to_remove

HOUR_MS = 3_600_000


def held(letters: str) -> list[Held]:
    """One snapshot an hour: v verified, n not verified, d damaged, u unreadable, s smaller, a smaller and accepted."""
    return [_held(number, letter) for number, letter in enumerate(letters)]


def _held(number: int, letter: str) -> Held:
    name = f"{number}{letter}"
    if letter == "u":
        return Held(name, None)
    manifest = Manifest(
        name=name,
        cluster="c",
        lineage="l",
        node="a",
        stream=None,
        sequence=0,
        vector={},
        horizon={},
        clock=0,
        run=1,
        bytes=1,
        sha256="",
        tables={"t": TableFacts(1, None)},
        schema="",
        integrity="ok",
        packed_bytes=1,
        parts=[],
        encryption=None,
        parent=None,
        smaller=letter in "sa",
        agent="",
        sqlite="",
        taken_ms=number * HOUR_MS,
    )
    verification = Verification(name, letter != "d", "content", None, 0, 0.0, "a") if letter in "vdsa" else None
    return Held(name, manifest, verification, accepted=letter == "a")


@pytest.mark.parametrize(
    ("letters", "name"),
    [("", None), ("nv", "1v"), ("vn", "0v"), ("vd", "0v"), ("vs", "0v"), ("va", "1a"), ("nn", "1n"), ("du", None)],
)
def test_the_best_is_the_newest_verified_of_ordinary_size(letters: str, name: str | None) -> None:
    found = best(held(letters))
    assert name == (found.name if found is not None else None)


@pytest.mark.parametrize(
    ("letters", "keep", "hours", "gone"),
    [
        ("vvvv", None, None, []),
        ("vvvv", 2, None, ["0v", "1v"]),
        ("vvvv", None, 2, ["0v", "1v"]),
        ("v", 1, 1, []),
        ("vnnn", 1, None, ["1n", "2n"]),  # the last verified one stays, however old it is
        ("vvssss", 2, None, ["2s", "3s"]),  # smaller ones push no good one out
        ("vvsa", 1, None, ["0v", "1v"]),
        ("duvd", None, None, ["0d", "1u"]),
        ("dd", 1, None, []),
    ],
)
def test_what_retention_removes(letters: str, keep: int | None, hours: float | None, gone: list[str]) -> None:
    snapshots = held(letters)
    age = hours * 3600 + 1 if hours is not None else None
    assert gone == to_remove(snapshots, (len(letters) + 0) * HOUR_MS, keep, age)


def test_less_than_half_is_much_smaller() -> None:
    assert [True, True, False, False] == [is_smaller(rows, 100) for rows in (0, 49, 50, 200)]
    assert not is_smaller(0, 0)
