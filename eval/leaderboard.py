"""Methods that were measured on the same, side by side: their tables, and the lines of their plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hiermem.eval.comparison import Report
from hiermem.eval.figures import Figure, conditions, kinds_at
from hiermem.eval.metrics import COSTS
from hiermem.eval.plots import Line, Panel
from hiermem.eval.tables import cell, table

_COST_AXES = (
    ("live_bytes", "live MiB when the answer begins", 2**20),
    ("first_token_seconds", "seconds to the first token", 1),
)


@dataclass(frozen=True)
class Place:
    """A method on a leaderboard.

    Attributes:
        name: the method with its settings; parts of one run under several conditions share it.
        family: the method whatever its budget.
        report: the result.
    """

    name: str
    family: str
    report: Report
    figures: Sequence[Figure]


@dataclass(frozen=True)
class Leaderboard:
    """Results that may be compared.

    Attributes:
        metric: the score by which they are.
        lower_is_better: whether a small one is good.
        axis: what their conditions are called, such as ``length``.
    """

    metric: str
    lower_is_better: bool
    axis: str
    places: Sequence[Place]

    def scores(self) -> list[str]:
        """Methods down, scores and costs across, the best on top."""
        rows = [(place.name, figure) for place in self.places for figure in place.figures]
        names = {name for _, figure in rows for name in figure.values}
        ordered = sorted(names, key=lambda name: (name != self.metric, name))
        costs = [name for name in COSTS if any(name in figure.costs for _, figure in rows)]
        header = ["method", *map(_words, ordered), "n", *(COSTS[name] for name in costs)]
        cells = [
            [name, *(figure.shown(score) for score in ordered), figure.n, *_costs_of(figure, costs)]
            for name, figure in sorted(rows, key=lambda row: self._rank(row[1]))
        ]
        return table(header, cells)

    def by_condition(self) -> list[str]:
        """Methods down, conditions across, the headline in the cells; below it, what answers cost."""
        scores: dict[str, dict[Any, str]] = {}
        costs: dict[str, dict[Any, str]] = {}
        for place in sorted(self.places, key=lambda place: place.name):
            for at, figure in conditions(place.figures).items():
                scores.setdefault(place.name, {})[at] = f"{figure.shown(self.metric)}, n {figure.n}"
                if len(figure.costs) == len(COSTS):
                    costs.setdefault(place.name, {})[at] = " / ".join(map(cell, _costs_of(figure, COSTS)))
        lines = [f"{_words(self.metric).capitalize()}, by {self.axis}:", "", *_grid(scores)]
        words = f"What an answer cost, by {self.axis} ({' / '.join(COSTS.values())}):"
        return [*lines, "", words, "", *_grid(costs)] if costs else lines

    def by_kind(self) -> list[str]:
        """A table for each condition: methods down, kinds across, and the mean for methods that have all."""
        found = {at for place in self.places for at in conditions(place.figures)}
        lines: list[str] = []
        for at in sorted(found, key=lambda at: (at is not None, at)):
            heading = _words(self.metric).capitalize() + (
                f", {self.axis} {cell(at)}" if at is not None else ""
            )
            lines += [f"{heading}:", "", *self._kinds_at(at), ""]
        return lines[:-1]

    def _kinds_at(self, at: Any) -> list[str]:
        """Methods down, the best on top; kinds across, each its score alone, so that the line can be read."""
        here = [place for place in self.places if kinds_at(place.figures, at)]
        kinds = sorted(frozenset[Any]().union(*(kinds_at(place.figures, at) for place in here)))
        wholes = [conditions(place.figures)[at] for place in here]
        costs = [name for name in COSTS if any(name in whole.costs for whole in wholes)]
        rows = []
        for place, whole in sorted(zip(here, wholes, strict=True), key=lambda row: self._rank(row[1])):
            cells = {f.by: cell(f.values.get(self.metric)) for f in place.figures if f.at == at}
            mean = whole.shown(self.metric) if len(cells) == len(kinds) else None
            scores = (cells.get(kind) for kind in kinds)
            rows.append([place.name, mean, *scores, whole.n, *_costs_of(whole, costs)])
        return table(["method", "mean of all", *kinds, "n", *(COSTS[name] for name in costs)], rows)

    def panels(self) -> list[Panel]:
        """Plots of the headline against conditions and against each cost, where there are points."""
        axes = ((None, self.axis, 1), *_COST_AXES)
        panels = [Panel(words, self.metric, self._lines(x, unit), log=x is None) for x, words, unit in axes]
        return [panel for panel in panels if sum(len(line.x) for line in panel.lines) > 1]

    def complete(self, place: Place, at: Any) -> bool:
        """Whether a method was measured on all kinds that any was: means over fewer are not comparable."""
        return kinds_at(place.figures, at) == frozenset[Any]().union(
            *(kinds_at(other.figures, at) for other in self.places)
        )

    def _rank(self, figure: Figure) -> tuple[bool, float]:
        value = figure.values.get(self.metric)
        return value is None, 0.0 if value is None else value if self.lower_is_better else -value

    def _lines(self, x: str | None, unit: float) -> list[Line]:
        """A line of the headline for each method.

        Args:
            x: what stands below, one of the costs; None: the condition.
            unit: what it is divided by.
        """
        lines: dict[str, Line] = {}
        for place in self.places:
            for at, figure in conditions(place.figures).items():
                below = at if x is None else figure.costs.get(x)
                if (
                    isinstance(below, int | float)
                    and self.metric in figure.values
                    and self.complete(place, at)
                ):
                    line = lines.setdefault(place.name, Line(place.name, place.family))
                    line.x.append(below / unit)
                    line.y.append(figure.values[self.metric])
        return [line.in_order() for line in lines.values()]


def _costs_of(figure: Figure, names: Iterable[str]) -> list[float | None]:
    """Costs as they stand in tables: bytes in MiB."""
    in_mib = {"live_bytes": 2**20}
    costs = {name: value / in_mib.get(name, 1) for name, value in figure.costs.items()}
    return [costs.get(name) for name in names]


def _grid(found: dict[str, dict[Any, str]]) -> list[str]:
    columns = sorted({at for row in found.values() for at in row})
    rows = [[name, *(row.get(at) for at in columns)] for name, row in found.items()]
    return table(["method", *map(cell, columns)], rows)


def _words(name: str) -> str:
    return name.replace("_", " ")
