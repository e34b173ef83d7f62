"""Figures, their goals, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

WIDTH = 170
"""Columns of the table, whatever the terminal: it is often read from a file."""


class Goal(StrEnum):
    """Which side of the goal is good."""

    AT_MOST = "<="
    AT_LEAST = ">="


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. ``goal`` is None for a number that only explains others."""

    name: str
    value: float
    unit: str = "x"
    """``x`` for a ratio."""
    goal: float | None = None
    side: Goal = Goal.AT_MOST
    detail: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.value <= self.goal if self.side is Goal.AT_MOST else self.value >= self.goal


def typical(values: Sequence[float]) -> float:
    """The median."""
    return float(median(values))


def percentile(values: Sequence[float], percent: int) -> float:
    """A percentile of at least two values, interpolated."""
    return float(quantiles(values, n=100, method="inclusive")[percent - 1])


def show(part: str, figures: Sequence[Figure]) -> None:
    """Print the figures of one part."""
    table = Table("figure", "measured", "goal", "", "detail", title=part, title_justify="left")
    verdicts = {None: "", True: "[green]reached[/]", False: "[red]missed[/]"}
    for figure in figures:
        goal = "" if figure.goal is None else f"{figure.side} {figure.goal:g}"
        measured = f"{figure.value:,.2f}" if figure.value < 1000 else f"{figure.value:,.0f}"
        table.add_row(figure.name, f"{measured} {figure.unit}", goal, verdicts[figure.reached], figure.detail)
    Console(width=WIDTH).print(table)


def as_json(figures: Sequence[Figure]) -> list[dict[str, object]]:
    """The figures as JSON-ready objects."""
    return [asdict(figure) | {"side": figure.side.value, "reached": figure.reached} for figure in figures]
