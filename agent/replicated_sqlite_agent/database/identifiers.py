"""Quoting of names and words. Pure."""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "__rsqlite_"
"""Every table, trigger and index that the agent adds to the user's database starts with this."""


def quote(name: str) -> str:
    """An identifier as SQL, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal as SQL."""
    return "'" + text.replace("'", "''") + "'"


def listed(names: Iterable[str], prefix: str = "") -> str:
    """Quoted identifiers joined by commas, each behind ``prefix`` (for instance ``NEW.``)."""
    return ", ".join(prefix + quote(name) for name in names)


def side(table: str) -> str:
    """The quoted name of the side table that holds the versions of a user's table."""
    return quote(f"{PREFIX}v_{table}")
