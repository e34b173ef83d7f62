"""The simulation notices a broken rule: each mutant by one recorded history, which is right without it."""

from __future__ import annotations

import pytest

from simulation.mutants import MUTANTS, Mutant
from simulation.story import run_seed


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_mutant_is_noticed(mutant: Mutant) -> None:
    run_seed(mutant.seed)
    assert mutant.noticed_by(mutant.seed), "this history does not show it: python -m simulation.mutants finds another"
