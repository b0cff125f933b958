"""What a benchmark answers: figures with their baselines, for people as a table and for programs as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should reach: ``least`` or ``most``, of the value itself or of its ratio to the baseline."""

    least: float | None = None
    most: float | None = None
    of_ratio: bool = False

    def met(self, value: float, ratio: float) -> bool:
        """Whether it is reached."""
        found = ratio if self.of_ratio else value
        return (self.least is None or found >= self.least) and (self.most is None or found <= self.most)

    def __str__(self) -> str:
        bound = f"≥ {number(self.least)}" if self.least is not None else f"≤ {number(self.most or 0)}"
        return f"ratio {bound}" if self.of_ratio else bound


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a figure is held against; ``values`` were measured in the same runs, in the same order."""

    what: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure. ``values``: one for each run, in ``unit``; what is stated is their median. ``conditions``: what was
    counted and set, ``sync``: how the broker wrote to disk (empty where there was none)."""

    name: str
    unit: str
    values: Sequence[float]
    baseline: Baseline
    conditions: str
    sync: str = ""
    aim: Aim | None = None

    @property
    def ratio(self) -> float:
        """The median over the runs of value against baseline: pairs, because a machine's mood changes between runs."""
        return median(value / base for value, base in zip(self.values, self.baseline.values, strict=True))

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; ``None`` where there is none."""
        return None if self.aim is None else self.aim.met(median(self.values), self.ratio)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "figure": self.name,
            "unit": self.unit,
            "sync": self.sync or None,
            "conditions": self.conditions,
            **_summary(self.values),
            "baseline": {"what": self.baseline.what, **_summary(self.baseline.values)},
            "ratio": _rounded(self.ratio),
            "aim": None if self.aim is None else str(self.aim),
            "aim_met": self.met,
        }


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": _rounded(median(values)),
        "min": _rounded(min(values)),
        "max": _rounded(max(values)),
        "runs": [_rounded(value) for value in values],
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def number(value: float) -> str:
    """Three significant digits; thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def figures_table(figures: Sequence[Figure], machine: Mapping[str, Any]) -> Table:
    """For people: a row for each figure."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=", ".join(f"{name} {value}" for name, value in machine.items()), title_justify="left")
    for name in ("figure", "sync", "median", "min to max", "unit", "baseline", "ratio", "aim"):
        table.add_column(name, justify="right" if name in {"median", "min to max", "ratio"} else "left")
    for figure in figures:
        style = {True: "green", False: "bold red", None: ""}[figure.met]
        table.add_row(
            Text(figure.name),
            Text(figure.sync),
            Text(number(median(figure.values)), style),
            Text(f"{number(min(figure.values))} to {number(max(figure.values))}"),
            Text(figure.unit),
            Text(f"{number(median(figure.baseline.values))}  {figure.baseline.what}"),
            Text(number(figure.ratio)),
            Text("" if figure.aim is None else str(figure.aim), style),
        )
    return table


def markdown(figures: Sequence[Figure], machine: Mapping[str, Any]) -> str:
    """For docs/benchmarks.md: the machine, a row for each figure, and under which conditions each was measured."""
    lines = [", ".join(f"{name} {value}" for name, value in machine.items()), ""]
    lines += ["| figure | sync | median | min to max | unit | baseline | ratio | aim |", "|---|---|---:|---:|---|---|---:|---|"]
    for figure in figures:
        cells = (
            f"`{figure.name}`",
            figure.sync,
            number(median(figure.values)),
            f"{number(min(figure.values))} to {number(max(figure.values))}",
            figure.unit,
            f"{number(median(figure.baseline.values))} ({figure.baseline.what})",
            number(figure.ratio),
            "" if figure.aim is None else f"{figure.aim}: {'met' if figure.met else 'missed'}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    conditions = {
        figure.conditions: [f"`{each.name}`" for each in figures if each.conditions == figure.conditions] for figure in figures
    }
    lines += ["", *(f"- {', '.join(dict.fromkeys(names))}: {text}" for text, names in conditions.items())]
    return "\n".join(lines)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
