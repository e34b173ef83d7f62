"""Versions: every write of a run has its own, and they only grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replicated_sqlite_agent.capture.triggers import KIND_FACTOR
from replicated_sqlite_agent.changes import CLOCK_SHIFT, Kind, advance, dominates, least, wall_ms
from replicated_sqlite_agent.database.exact import Row
from replicated_sqlite_agent.database.own_tables import Progress
from replicated_sqlite_agent.replica.state import stamp

clocks = st.integers(0, (1 << 62) - 1)
times = st.integers(0, 1 << 41)
vectors = st.dictionaries(st.integers(1, 4), st.integers(1, 9))


@given(clocks, times)
def test_advance_is_strict(clock: int, now: int) -> None:
    later = advance(clock, now)
    assert later > clock
    assert wall_ms(later) >= now


@given(clocks, st.lists(times, min_size=1), st.integers(-(10**6), 10**6))
def test_stamps_of_a_log_strictly_increase_and_can_be_cut_anywhere(clock: int, wall: list[int], offset: int) -> None:
    rows: list[Row] = [(seq, KIND_FACTOR + Kind.UPDATE, ts, -1, seq) for seq, ts in enumerate(wall, 1)]
    progress = Progress("c", "n", 1, clock=clock, clock_offset=offset)
    mentions, last = stamp(rows, progress, {1: 1})
    given_clocks = [told[0].clock for told in mentions[1].values()]
    assert all(a < b for a, b in zip([clock, *given_clocks], given_clocks, strict=False))
    assert last == given_clocks[-1]
    half = len(rows) // 2
    first, middle = stamp(rows[:half], progress, {1: 1})
    second, end = stamp(rows[half:], Progress("c", "n", 1, clock=middle, clock_offset=offset), {1: 1})
    assert end == last
    assert first.get(1, {}) | second.get(1, {}) == mentions[1]


@given(vectors, vectors, vectors)
def test_least_is_the_greatest_vector_that_all_dominate(
    a: dict[int, int], b: dict[int, int], c: dict[int, int]
) -> None:
    common = least([a, b])
    assert dominates(a, common)
    assert dominates(b, common)
    if dominates(a, c) and dominates(b, c):
        assert dominates(common, c)


def test_a_clock_has_room_for_a_million_writes_a_millisecond() -> None:
    clock = advance(0, 1_000)
    for _ in range(10):
        clock = advance(clock, 1_000)
    assert wall_ms(clock) == 1_000
    assert CLOCK_SHIFT == 20
