"""When a snapshot is due: after a duration, or at the times of five cron fields in UTC. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WORDS: Final[tuple[dict[str, int], ...]] = (
    {},
    {},
    {},
    {w: i + 1 for i, w in enumerate(_MONTHS)},
    {w: i for i, w in enumerate(_DAYS)},
)
_RANGES: Final = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_DAYS_AHEAD: Final = 366 * 8 + 2
"""29 February comes within eight years."""


def is_due(schedule: str, last_s: float | None, now_s: float, duration: Callable[[str], float]) -> bool:
    """Whether a snapshot is to be taken now, the last one having been taken at ``last_s`` (None: never).

    ``schedule`` is well-formed; ``duration`` reads it if it is no cron. Seconds since 1970.
    """
    if last_s is None:
        return True
    if len(schedule.split()) == len(_RANGES):
        following = next_time(schedule, last_s)
        return following is not None and following <= now_s
    return now_s - last_s >= duration(schedule)


def next_time(cron: str, after_s: float) -> float | None:
    """The first moment after ``after_s`` that five cron fields name; None if there is none, as for 30 February."""
    minutes, hours, days, months, weekdays = (
        _values(field, *limits, words) for field, limits, words in zip(cron.split(), _RANGES, _WORDS, strict=True)
    )
    weekdays = {day % 7 for day in weekdays}
    _, _, day_field, _, weekday_field = cron.split()
    either = not day_field.startswith("*") and not weekday_field.startswith("*")
    after = datetime.fromtimestamp(after_s, UTC)
    for ahead in range(_DAYS_AHEAD):
        day = (after + timedelta(days=ahead)).replace(hour=0, minute=0, second=0, microsecond=0)
        fits, falls = day.day in days, day.isoweekday() % 7 in weekdays
        if day.month not in months or not ((fits or falls) if either else (fits and falls)):
            continue
        for hour, minute in product(sorted(hours), sorted(minutes)):
            if (moment := day.replace(hour=hour, minute=minute)) > after:
                return moment.timestamp()
    return None


def _values(field: str, low: int, high: int, words: dict[str, int]) -> set[int]:
    """The numbers that one field names."""
    values: set[int] = set()
    for part in field.lower().split(","):
        span, slash, step = part.partition("/")
        ends = [words.get(end, end) for end in span.split("-")]
        if span == "*":
            first, last = low, high
        else:
            first = int(ends[0])
            last = int(ends[-1]) if len(ends) == 2 or not slash else high
        values |= set(range(first, last + 1, int(step) if slash else 1))
    return values
