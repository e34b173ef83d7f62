"""How many histories to run: ``--seeds N`` or ``RSQLITE_SEEDS``; ``--seed S`` repeats one."""

from __future__ import annotations

import os

import pytest

SEEDS = 150


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the simulation."""
    group = parser.getgroup("simulation")
    group.addoption("--seeds", type=int, default=None, help=f"how many histories to run (default {SEEDS})")
    group.addoption("--first-seed", type=int, default=1, help="the first of them")
    group.addoption("--seed", type=int, default=None, help="run only this history")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed."""
    if "seed" not in metafunc.fixturenames:
        return
    options = metafunc.config.option
    if options.seed is not None:
        metafunc.parametrize("seed", [options.seed])
        return
    count = options.seeds if options.seeds is not None else int(os.environ.get("RSQLITE_SEEDS", SEEDS))
    metafunc.parametrize("seed", range(options.first_seed, options.first_seed + count))
