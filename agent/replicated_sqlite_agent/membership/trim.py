"""Keeps the stream from filling up: what a snapshot and every member have passed is purged.

One member at a time does it, by a lease. A member that was silent for `member_ttl` no longer holds the stream back;
when it returns and misses messages, its peers say again what it lacks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from replicated_sqlite_agent.membership.members import Member
from replicated_sqlite_agent.stream.session import StreamState

TRIM_ABOVE = 0.25
"""Share of the stream's size limit below which nothing is purged: late members find their tail."""

TRIM_ABOVE_BYTES = 512 << 20
"""The same for a stream without a limit."""


def worth_trimming(state: StreamState) -> bool:
    """Whether the stream is large enough to be trimmed. Pure."""
    bound = state.max_bytes * TRIM_ABOVE if state.max_bytes > 0 else TRIM_ABOVE_BYTES
    return state.bytes > bound


def keep_from(members: Iterable[Member], now_ms: int, member_ttl_s: float) -> int:
    """The oldest stream sequence that a member not yet retired may still need; 0 if there is none. Pure."""
    living = [m.sequence for m in members if now_ms - m.seen_ms <= member_ttl_s * 1000]
    return min(living, default=0)


async def trim(
    state: StreamState,
    floor: int,
    snapshot_sequence: Callable[[int], Awaitable[int]],
    purge: Callable[[int], Awaitable[int]],
) -> int:
    """Purge up to what everybody has; returns how many messages went.

    ``snapshot_sequence(floor)`` returns the position of a verified snapshot, a new one if the last is older than
    ``floor``. The message at the position itself stays: by its id a reader notices that a stream has lost messages.
    """
    if floor <= state.first:
        return 0
    upto = min(floor, await snapshot_sequence(floor))
    return await purge(upto) if upto > state.first else 0
