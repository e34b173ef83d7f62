"""Which snapshots are kept, and which is the one to use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replicated_sqlite_agent.snapshots.documents import Manifest, Verification

SMALLER_THAN = 0.5
"""A database with less than this share of the last good snapshot's rows is taken for an accident until accepted."""


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot that lies in a store."""

    name: str
    manifest: Manifest | None
    """None: it cannot be read, `problem` says why."""
    verification: Verification | None = None
    accepted: bool = False
    problem: str | None = None

    @property
    def usable(self) -> bool:
        """Complete as far as anybody knows."""
        return self.manifest is not None and (self.verification is None or self.verification.ok)

    @property
    def normal(self) -> bool:
        """Usable, and not the much smaller one that an accident would leave."""
        return self.usable and self.manifest is not None and (self.accepted or not self.manifest.smaller)

    @property
    def good(self) -> bool:
        """Normal and verified."""
        return self.normal and self.verification is not None

    @property
    def state(self) -> str:
        """In words, for people."""
        if self.manifest is None or not self.usable:
            return "damaged"
        if not self.normal:
            return "smaller"
        if self.verification is None:
            return "not verified"
        return "verified" if self.verification.depth == "content" else "verified (parts)"


def is_smaller(rows: int, former_rows: int) -> bool:
    """Whether a database has lost so many rows that it must not replace the former snapshot."""
    return rows < former_rows * SMALLER_THAN


def best(held: Sequence[Held]) -> Held | None:
    """The newest good one, else the newest normal one. ``held`` is by time, the oldest first."""
    good = [one for one in held if one.good]
    normal = [one for one in held if one.normal]
    return next(reversed(good or normal), None)


def to_remove(held: Sequence[Held], now_ms: int, keep: int | None, max_age_s: float | None) -> list[str]:
    """Names of the snapshots to remove; ``held`` is by time, the oldest first. Never the best one.

    Much smaller ones are counted apart, so that they cannot push good ones out. Damaged ones go once there is a newer
    good one.
    """
    spared = best(held)
    gone: set[str] = set()
    for group in ([one for one in held if one.normal], [one for one in held if one.usable and not one.normal]):
        if keep is not None:
            gone |= {one.name for one in group[: max(0, len(group) - keep)]}
        if max_age_s is not None:
            gone |= {one.name for one in group if age_s(one, now_ms) > max_age_s}
    if spared is not None:
        gone |= {one.name for one in held[: held.index(spared)] if not one.usable}
        gone.discard(spared.name)
    return sorted(gone)


def age_s(held: Held, now_ms: int) -> float:
    """Seconds since a snapshot was taken."""
    return (now_ms - held.manifest.taken_ms) / 1000 if held.manifest is not None else 0.0
