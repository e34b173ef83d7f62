"""When a snapshot is due."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from replicated_sqlite_agent.settings import seconds_of
from replicated_sqlite_agent.snapshots.schedule import is_due, next_time


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("cron", "after", "following"),
    [
        ("15 * * * *", "2026-11-21 16:14:59", "2026-11-21 16:15:00"),
        ("15 * * * *", "2026-11-21 16:15:00", "2026-11-21 17:15:00"),
        ("*/20 3 * * *", "2026-11-21 16:00:00", "2026-11-22 03:00:00"),
        ("0 0 1 jan *", "2026-11-21 16:00:00", "2027-01-01 00:00:00"),
        ("0 12 * * mon-fri", "2026-11-21 16:00:00", "2026-11-23 12:00:00"),
        ("0 12 * * 0", "2026-11-21 16:00:00", "2026-11-22 12:00:00"),
        ("0 12 * * 7", "2026-11-21 16:00:00", "2026-11-22 12:00:00"),
        ("0 12 * * 5-7", "2026-11-20 13:00:00", "2026-11-21 12:00:00"),
        ("0 0 13 * fri", "2026-11-21 16:00:00", "2026-11-27 00:00:00"),  # either, as cron has it
        ("0 0 29 2 *", "2026-11-21 16:00:00", "2028-02-29 00:00:00"),
        ("5,10/25 0 * * *", "2026-11-21 00:10:00", "2026-11-21 00:35:00"),
    ],
)
def test_the_next_time_of_a_cron(cron: str, after: str, following: str) -> None:
    assert at(following) == next_time(cron, at(after))


def test_a_day_that_never_comes_has_no_next_time() -> None:
    assert next_time("0 0 30 2 *", at("2026-11-21 16:00:00")) is None
    assert not is_due("0 0 30 2 *", 0.0, at("2026-11-21 16:00:00"), seconds_of)


@pytest.mark.parametrize(
    ("schedule", "last", "due"),
    [
        ("1h", None, True),
        ("0 3 * * *", None, True),
        ("1h", "2026-11-21 15:00:01", False),
        ("1h", "2026-11-21 15:00:00", True),
        ("0 3 * * *", "2026-11-21 03:00:10", False),
        ("0 3 * * *", "2026-11-21 02:59:59", True),
    ],
)
def test_what_is_due_at_16_00(schedule: str, last: str | None, due: bool) -> None:
    assert due is is_due(schedule, at(last) if last else None, at("2026-11-21 16:00:00"), seconds_of)
