"""The parts of a page of results: each shows the results of one task that may be compared with each other."""

from collections.abc import Sequence
from typing import ClassVar

from hiermem.eval.comparison import Report, family_of, labelled
from hiermem.eval.figures import Figure, of_metrics, of_row
from hiermem.eval.leaderboard import Leaderboard, Place
from hiermem.eval.plots import Panel


class Section:
    """A part of the page: how the results of one task are shown. By default, a leaderboard.

    Attributes:
        title: its heading.
        headline: the score by which methods are compared; by default, the first.
        lower_is_better: whether a small headline is a good one.
        axis: what of a result's rows stands across the table, such as ``length``; None: scores do.
        by: what else tells a result's rows apart, such as ``task``.
        told: settings that the table says itself, so that results may differ in them.
        of_tiers: whether results of hiermem tell what each of its tiers is worth.
    """

    title: ClassVar[str] = ""
    headline: ClassVar[str] = ""
    lower_is_better: ClassVar[bool] = False
    axis: ClassVar[str | None] = None
    by: ClassVar[str | None] = None
    told: ClassVar[tuple[str, ...]] = ()
    of_tiers: ClassVar[bool] = False

    @classmethod
    def family(cls, report: Report) -> str:
        """The method of a result in a few words, whatever its budget."""
        return family_of(report)

    @classmethod
    def figures(cls, report: Report) -> list[Figure]:
        """The scores of a result, one figure for each of its conditions."""
        if cls.axis is None and cls.by is None:
            return [of_metrics(report)]
        return [of_row(report, row, cls.axis, cls.by, cls.headline) for row in report["rows"]]

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        """Lines of Markdown for results that may be compared."""
        board = cls.leaderboard(reports)
        if cls.by is not None:
            return board.by_kind()
        return board.scores() if cls.axis is None else board.by_condition()

    @classmethod
    def panels(cls, reports: Sequence[Report]) -> list[Panel]:
        """Plots of results that may be compared; none where a table says it all."""
        return cls.leaderboard(reports).panels()

    @classmethod
    def leaderboard(cls, reports: Sequence[Report]) -> Leaderboard:
        """The methods of results that may be compared, each under a name of its own."""
        found = {id(report): cls.figures(report) for report in reports}
        scores = [name for figures in found.values() for figure in figures for name in figure.values]
        names = labelled(reports, shown=cls.told)
        places = [Place(name, cls.family(report), report, found[id(report)]) for name, report in names]
        metric = cls.headline or next(iter(scores), "")
        return Leaderboard(metric, cls.lower_is_better, cls.axis or "", places)
