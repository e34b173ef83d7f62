"""Random histories of several replicas: whatever happens in whatever order, they end equal and lose nothing.

More of them: ``python -m pytest tests/simulation --seeds 5000``. A failing seed prints its history and its command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from simulation.story import run_seed

HAPPENS = (
    "aborted",
    "clone",
    "column added",
    "conflicts demanded and found",
    "delivered again",
    "groups applied",
    "groups of several chunks",
    "hidden at the end",
    "publish lost",
    "publish torn",
    "publish twice",
    "publish unknown",
    "restart",
)
"""Faults and events that a run of many seeds must have met: a fault that never happens proves nothing."""

ENOUGH_SEEDS = 100


@pytest.fixture(scope="module")
def met() -> Iterator[Counter[str]]:
    """What happened in all histories together, checked at the end."""
    counted: Counter[str] = Counter()
    yield counted
    if counted["histories"] >= ENOUGH_SEEDS:
        missing = [what for what in HAPPENS if not counted[what]]
        assert not missing, f"in {counted['histories']} histories never happened: {missing}"


def test_history(seed: int, met: Counter[str]) -> None:
    met.update(run_seed(seed).hits)
    met["histories"] += 1
