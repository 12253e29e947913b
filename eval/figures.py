"""The scores of results under each of their conditions, whatever the task."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hiermem.eval.comparison import Report
from hiermem.eval.metrics import COSTS, bootstrap
from hiermem.eval.tables import between, cell

FEW = 5
"""Fewer answers than these say too little of how much they vary: two that are both right would be sure."""
_NO_SCORES = ("n", "interval", "intervals", *COSTS)


@dataclass(frozen=True)
class Figure:
    """Scores of a result under one condition.

    Attributes:
        at: value of the section's ``axis``, such as a length; None where there is none.
        by: value of the section's ``by``, such as one of several subtasks.
        values: scores by name.
        intervals: of some of them, of 95 %.
        n: how many answers were scored.
        costs: means of `COSTS`, those that were measured.
    """

    at: Any
    by: Any
    values: Mapping[str, float]
    intervals: Mapping[str, Sequence[float]]
    n: int
    costs: Mapping[str, float]

    def shown(self, metric: str) -> str | None:
        """A score with its interval, as it stands in a table."""
        if metric not in self.values:
            return None
        return cell(self.values[metric]) + between(self.intervals.get(metric))


def of_metrics(report: Report) -> Figure:
    """The scores of a result as a whole."""
    metrics = report["metrics"]
    costs = {name: float(value) for name, value in report.get("costs", {}).items() if name in COSTS}
    intervals = report.get("intervals", {}) if report["n"] > 1 else {}
    return Figure(None, None, _numbers(metrics), intervals, report["n"] + 0, costs)


def of_row(report: Report, row: Mapping[str, Any], axis: str | None, by: str | None, metric: str) -> Figure:
    """The scores of one row of a result.

    Args:
        axis: which of its values is its condition; see `hiermem.eval.section.Section`.
        by: which is its kind.
        metric: the score that its ``interval`` is of.

    Raises:
        TypeError: the row has no such score.
    """
    conditions = [name for name in (axis, by) if name is not None]
    values = _numbers({name: value for name, value in row.items() if name not in conditions})
    if metric and metric not in values:
        raise TypeError(f"a row without {metric}")
    intervals = dict(row.get("intervals", {}))
    if "interval" in row and row["n"] > 1:
        intervals[metric] = row["interval"]
    examples = report.get("examples", ())
    same = [each for each in examples if all(each.get(name) == row[name] for name in conditions)]
    costs = {name: cost for name in COSTS if (cost := _cost(name, row, same)) is not None}
    at, kind = (None if name is None else row[name] for name in (axis, by))
    return Figure(at, kind, values, intervals, row["n"] + 0, costs)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The scores among values."""
    return {
        name: value
        for name, value in values.items()
        if name not in _NO_SCORES and isinstance(value, int | float)
    }


def _cost(name: str, row: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean cost of the answers of a row."""
    if row.get(name) is not None:
        return float(row[name])
    values = [float(example[name]) for example in examples if example.get(name) is not None]
    return sum(values) / len(values) if values and len(values) == len(examples) else None


def conditions(figures: Sequence[Figure]) -> dict[Any, Figure]:
    """Figures of a result by their conditions; where there are several kinds, the mean over them."""
    found: dict[Any, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.at, []).append(figure)
    return {at: _mean_of(same) for at, same in found.items()}


def kinds_at(figures: Sequence[Figure], at: Any) -> frozenset[Any]:
    """The kinds that a result has under a condition."""
    return frozenset(figure.by for figure in figures if figure.at == at)


def _mean_of(figures: Sequence[Figure]) -> Figure:
    """The plain mean over kinds, as benchmarks of several subtasks give it; one figure stays as it is."""
    if len(figures) == 1:
        return figures[0]

    def means(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {
            name: sum(part[name] for part in parts) / len(parts)
            for name in parts[0]
            if all(name in part for part in parts)
        }

    values, costs = means([f.values for f in figures]), means([f.costs for f in figures])
    intervals = {name: _interval_of(name, values[name], figures) for name in values}
    intervals_of_all = {name: interval for name, interval in intervals.items() if interval is not None}
    return Figure(figures[0].at, None, values, intervals_of_all, sum(f.n for f in figures), costs)


def _interval_of(name: str, mean: float, parts: Sequence[Figure]) -> tuple[float, float] | None:
    """Interval of the mean of a score over independent parts; None where a part has none.

    Half of its width is the root of the sum of their squared halves, over their number. Where a part has few
    answers, the parts are resampled in place of them: wider, since parts differ.
    """
    if min(part.n for part in parts) < FEW:
        return bootstrap([part.values[name] for part in parts])
    intervals = [part.intervals[name] for part in parts if name in part.intervals]
    if len(intervals) < len(parts):
        return None
    half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in intervals)) / len(intervals)
    return mean - half, mean + half
