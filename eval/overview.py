"""The first tables of the page: all headlines of all backbones and methods, and what each tier is worth."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermem.eval.comparison import UNBOUNDED, Report, backbone_of, grouped, labelled
from hiermem.eval.figures import Figure, conditions
from hiermem.eval.section import Section
from hiermem.eval.tables import as_text, cell, table

Results = Mapping[type[Section], Sequence[Report]]
"""Results by the section that shows them, in the order of the page."""

_OFF = (*UNBOUNDED, "full")
"""Policies with which nothing is chosen to be kept, by all their names."""


@dataclass(frozen=True)
class Entry:
    """The headline of a result under one condition.

    Attributes:
        task: with everything but the backbone that tells what it was measured on.
        family: the method, whatever its settings.
        complete: whether it is over all kinds that others of the same task are over.
    """

    task: str
    family: str
    report: Report
    figure: Figure
    metric: str
    complete: bool


def overview(results: Results) -> list[str]:
    """Tables of backbones, tasks and methods; where a method has several settings, their range."""
    entries = [entry for entry in _entries(results) if entry.complete]
    lines: list[str] = []
    for backbone in sorted({backbone_of(entry.report) for entry in entries}):
        mine = [entry for entry in entries if backbone_of(entry.report) == backbone]
        if lines:
            lines.append("")
        lines += [f"### {as_text(backbone or 'no backbone')}", "", *_headlines(mine)]
    return lines


def _headlines(entries: Sequence[Entry]) -> list[str]:
    """Tasks down, methods across. A method of one task alone stands in that task's own table."""
    tasks_of: dict[str, set[str]] = defaultdict(set)
    cells: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        family = entry.family
        tasks_of[family].add(entry.report["task"])
        cells[entry.task][family].append(entry)
    least = min(2, len({entry.report["task"] for entry in entries}))
    families = [name for name, tasks in tasks_of.items() if len(tasks) >= least]
    rows = []
    for task, row in cells.items():
        found = [_range(row.get(name, ())) for name in families]
        if any(found):
            counts = sorted({entry.figure.n for name in families for entry in row.get(name, ())})
            first = next(iter(row.values()))[0]
            n = cell(counts[0]) + (f" to {cell(counts[-1])}" if len(counts) > 1 else "")
            rows.append([task, first.metric.replace("_", " "), *found, n])
    return table(["task", "score", *families, "n"], rows)


def _range(entries: Sequence[Entry]) -> str | None:
    """A score with its interval, or the least and the greatest of several settings; never their mean."""
    if not entries:
        return None
    if len(entries) == 1:
        return entries[0].figure.shown(entries[0].metric)
    values = sorted(entry.figure.values[entry.metric] for entry in entries)
    return f"{cell(values[0])} to {cell(values[-1])}, {len(values)} settings"


def value_of_tiers(results: Results) -> list[str]:
    """For each model of which tiers were left out: what they are, against the headlines without."""
    by_model: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in _entries({section: found for section, found in results.items() if section.of_tiers}):
        config = entry.report["config"]
        if config.get("system", "hiermem") == "hiermem" and isinstance(config.get("working"), dict):
            model = Path(str(config.get("model") or "")).name
            by_model[model, str(config.get("dtype"))].append(entry)
    lines: list[str] = []
    for (model, dtype), entries in by_model.items():
        part = _tiers(entries)
        lines += [*([""] if lines else []), f"### {as_text(f'{model}, {dtype}')}", "", *part] if part else []
    return lines


def _tiers(entries: Sequence[Entry]) -> list[str]:
    """Sets of tiers down, tasks across; nothing where all results have the same tiers."""
    every = frozenset[str]().union(*(tiers_of(entry.report) for entry in entries))
    partial = {entry.task for entry in entries if tiers_of(entry.report) != every}
    columns = [
        task
        for task in dict.fromkeys(entry.task for entry in entries)
        if task in partial and len({tiers_of(entry.report) for entry in entries if entry.task == task}) > 1
    ]
    rows: dict[str, dict[str, str | None]] = defaultdict(dict)
    for task in columns:
        of_task = {id(entry.report): entry for entry in entries if entry.task == task}
        reports = [entry.report for entry in of_task.values()]
        for name, report in labelled(reports, lambda report: tiers_in_words(tiers_of(report), every)):
            entry = of_task[id(report)]
            rows[name][task] = entry.figure.shown(entry.metric)
    cells = [[name, *(row.get(task) for task in columns)] for name, row in sorted(rows.items())]
    return table(["tiers", *columns], cells) if columns else []


def tiers_of(report: Report) -> frozenset[str]:
    """The tiers that a result of hiermem was measured with."""
    config = report["config"]
    on = {
        "working memory": config["working"]["policy"] not in _OFF,
        "long-term memory": config.get("longterm", {}).get("top_k", 0) > 0,
        "memory embeddings": config.get("summary", {}).get("tokens", 0) > 0,
        "recurrent memory": "mamba" in config,
    }
    return frozenset(name for name, is_on in on.items() if is_on)


def tiers_in_words(on: frozenset[str], every: frozenset[str]) -> str:
    """A set of tiers, of all those that a model has."""
    if on == every:
        return "all"
    if not on:
        return "none"
    if len(on) == 1:
        return f"{next(iter(on))} alone"
    return f"without {' and '.join(sorted(every - on))}"


def _entries(results: Results) -> Iterator[Entry]:
    for section, reports in results.items():
        if not section.headline:
            continue
        for words, group in grouped(reports, section.told):
            board = section.leaderboard(group)
            for place in board.places:
                settings = words.removeprefix(backbone_of(place.report)).removeprefix(", ")
                for at, figure in conditions(place.figures).items():
                    if section.headline in figure.values:
                        task = ", ".join(filter(None, (section.title, settings, _at(section, at))))
                        complete = board.complete(place, at)
                        yield Entry(task, place.family, place.report, figure, section.headline, complete)


def _at(section: type[Section], at: Any) -> str:
    return "" if at is None else f"{section.axis} {cell(at)}"
