"""The project itself: one version, every dependency pinned, and no file that shadows a standard module."""

from __future__ import annotations

import importlib.metadata
import operator
import re
import tomllib
from pathlib import Path

import pytest

from replicated_sqlite_contract import __version__

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = ["constraints.txt", "requirements-agent.txt", "requirements-operator.txt", "requirements-dev.txt"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pinned(lock: str) -> dict[str, str]:
    lines = (ROOT / lock).read_text().splitlines()
    return {name_of(line): line.split("==")[1].split()[0] for line in lines if re.match(r"[a-z0-9].*==", line)}


def test_the_standard_operator_module_is_not_shadowed() -> None:
    assert operator.__file__ is not None
    assert not Path(operator.__file__).is_relative_to(ROOT / "operator")
    assert list((ROOT / "operator").glob("*.py")) == []


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert importlib.metadata.version("replicated-sqlite") == __version__


@pytest.mark.parametrize("lock", LOCKS)
def test_every_dependency_is_pinned(lock: str) -> None:
    extras = PROJECT["optional-dependencies"]
    part = lock.removeprefix("requirements-").removesuffix(".txt")
    wanted = extras[part] if part in ("agent", "operator") else [name for extra in extras.values() for name in extra]
    assert {name_of(requirement) for requirement in wanted} <= set(pinned(lock))


@pytest.mark.parametrize("lock", LOCKS[1:])
def test_hashed_requirements_agree_with_the_constraints(lock: str) -> None:
    assert pinned(lock).items() <= pinned("constraints.txt").items()


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_an_index_or_a_path(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert re.findall(r"https?:|file:|--index|--extra-index|--find-links|--trusted|@ |^/|\s/", text, re.MULTILINE) == []
