"""Markdown tables of results, and the parts of a report's page that are made of them."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, ClassVar

Report = dict[str, Any]
"""The content of a result file: `task`, `metrics`, `rows`, `n`, `config`, `command`, …"""


class Section:
    """A part of the page: how the results of one task are shown. By default, metrics in a table.

    Attributes:
        title: its heading.
        plots: whether there is a plot of the results.
    """

    title: ClassVar[str] = ""
    plots: ClassVar[bool] = False

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        """Lines of Markdown for all results of the task."""
        names = sorted({name for report in reports for name in report["metrics"]})
        return table([*names, "n"], [[*(r["metrics"].get(name) for name in names), r["n"]] for r in reports])

    @classmethod
    def plot(cls, reports: Sequence[Report], path: Path) -> None:
        """Draw the results into the PNG file ``path``, where a table does not say it all."""
        raise NotImplementedError


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers are given three to four significant digits, None is left empty."""
    lines = [list(map(cell, line)) for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return ["| " + " | ".join(line) + " |" for line in lines]


def as_text(words: str) -> str:
    """Markdown that shows these very words, on one line; results may hold anything."""
    line = "".join(letter if letter.isprintable() else " " for letter in words)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(line, quote=False))


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return as_text(str(value))
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def between(interval: Sequence[float] | None) -> str:
    """An interval in brackets, to stand behind a value; nothing where there is none."""
    return f" ({cell(interval[0])} to {cell(interval[1])})" if interval else ""


def rows_of(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """The rows of all results."""
    return [row for report in reports for row in report["rows"]]


def pivot(reports: Sequence[Report], across: str, metric: str, label: str) -> list[str]:
    """Configurations down, a setting across; in the cells a metric, with its interval where there is one."""
    columns = sorted({report["config"][across] for report in reports})
    cells: dict[str, dict[Any, Any]] = defaultdict(dict)
    for name, report in named(reports, lambda r: [r["config"][across]], shown=across):
        if metric in report["metrics"]:
            interval = report.get("intervals", {}).get(metric)
            cells[name][report["config"][across]] = cell(report["metrics"][metric]) + between(interval)
    return table([label, *columns], [[name, *(row.get(c) for c in columns)] for name, row in cells.items()])


def by_length(reports: Sequence[Report], metric: str) -> list[str]:
    """Configurations down, lengths of their rows across, one metric in the cells."""
    lengths = sorted({row["length"] for row in rows_of(reports)})
    cells: dict[str, dict[int, Any]] = defaultdict(dict)
    for name, report in named(reports, lambda r: [row["length"] for row in r["rows"]]):
        for row in report["rows"]:
            interval = between(row.get("interval"))
            cells[name][row["length"]] = f"{row[metric]:.2f}{interval}, n {row['n']}"
    header = ["system", *(f"{length:,} tokens" for length in lengths)]
    return table(header, [[name, *(row.get(n) for n in lengths)] for name, row in cells.items()])


def metric_table(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """A table for each data set: methods and languages down, metrics with their intervals across.

    Args:
        names: metrics that are shown where a result has them.
    """
    lines: list[str] = []
    for dataset in dict.fromkeys(map(_dataset, reports)):
        same = [report for report in reports if _dataset(report) == dataset]
        used = [name for name in names if any(name in report["metrics"] for report in same)]
        languages = ["language"] if any(map(_language, same)) else []
        rows = [
            [method, *([_language(report)] if languages else []), *_figures(report, used), report["n"]]
            for method, report in named(same, lambda report: [_language(report)])
        ]
        header = ["system", *languages, *(name.replace("_", " ") for name in used), "n"]
        lines += [f"{as_text(dataset)}:", "", *table(header, rows), ""]
    return lines[:-1]


def _dataset(report: Report) -> str:
    config = report["config"]
    split = f", {config['split']}" if config["split"] else ""
    return config["dataset"] + split + (", half of the paragraphs left out" if config.get("abstain") else "")


def _language(report: Report) -> str:
    """Of the questions, and of the document where it has another; nothing where all is in one language."""
    asked, document = (report["config"].get(name) or "" for name in ("language", "document_language"))
    return asked if asked == document else f"{asked} about {document}"


def _figures(report: Report, names: Sequence[str]) -> list[str]:
    metrics, intervals = report["metrics"], report["intervals"]
    return [cell(metrics.get(name)) + between(intervals.get(name)) for name in names]


def named(
    reports: Sequence[Report], cells: Callable[[Report], Collection[Any]], shown: str = ""
) -> list[tuple[str, Report]]:
    """Reports under the names of their methods; where two would share a cell, with what they differ in.

    Args:
        cells: the columns that a report has values for.
        shown: setting that the table's columns say.
    """
    groups: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        groups[_method(report)].append(report)
    found = []
    for name, members in groups.items():
        counts = Counter(cell for report in members for cell in cells(report))
        double = [r for r in members if any(counts[cell] > 1 for cell in cells(r))]
        flat = [(tuple(cells(report)), dict(_flat(report["config"]))) for report in double]
        differ = _telling_apart(flat, shown)
        for report in members:
            settings = dict(_flat(report["config"]))
            found.append((", ".join([name, *(f"{key} {settings.get(key)}" for key in differ)]), report))
    return found


def _method(report: Report) -> str:
    """A configuration in a few words."""
    config = report["config"]
    method = config.get("system", "hiermem")
    if method not in ("hiermem", "pruned", "compressed"):
        return method
    policy = config["working"]["policy"] if "working" in config else ""
    return {"pruned": policy, "compressed": f"{policy}, compressed"}.get(method, f"hiermem ({policy})")


def _telling_apart(flat: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], shown: str) -> list[str]:
    """The first settings by which all that share a cell differ.

    Args:
        flat: cells and settings of each report.
    """
    keys = dict.fromkeys(key for _, settings in flat for key in settings if key != shown)
    chosen: list[str] = []
    for key in keys:
        if len({(cells, *(str(settings.get(k)) for k in chosen)) for cells, settings in flat}) == len(flat):
            break
        if len({str(settings.get(key)) for _, settings in flat}) > 1:
            chosen.append(key)
    return chosen


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value
