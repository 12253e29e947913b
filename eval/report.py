"""One Markdown page with tables and plots from the JSON results of a folder; each task brings its own."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hiermem.errors import InputError
from hiermem.eval.comparison import Report, grouped
from hiermem.eval.overview import overview, value_of_tiers
from hiermem.eval.plots import PNG, draw
from hiermem.eval.prompt_grounds import is_ground
from hiermem.eval.result_log import replaced, writable
from hiermem.eval.section import Section
from hiermem.eval.speed import SpeedSection
from hiermem.eval.tables import as_text
from hiermem.eval.tasks import TASKS

_ODD = (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors that come of results that are none."""

_TITLE = b"# Results"
_RESULT = b'{\n "task": '
"""How every result file begins."""
_OVERVIEW = (
    "The headline of each task, with 95 % intervals. Where a method was measured with several settings, the "
    "least and the greatest are given. A method of one task alone stands in that task's own table."
)
_TIERS = "What hiermem scores with all tiers of a model, with each alone, and without each."


def build(folder: Path, page: Path, copies: Path | None = None) -> list[Path]:
    """Write ``page`` and, beside it, its plots; returns all files written.

    Args:
        copies: folder for small copies of the results, without the texts of single answers.

    Raises:
        InputError: the folder holds no results, or a file that is none.
    """
    files = {file: _read(file) for file in sorted(folder.glob("*.json")) if not is_ground(file)}
    if not files:
        raise InputError(f"There are no results in {folder}: make some with `hiermem eval … --out`.")
    by_task: dict[str, list[Report]] = defaultdict(list)
    for report in files.values():
        by_task[report["task"]].append(report)
    writable(page, "--page", _TITLE)
    registered = [name for name in _sections() if name in by_task]
    names = [*registered, *sorted(set(by_task) - set(registered))]
    lines, plots = [_TITLE.decode(), "", *_first_tables({name: by_task[name] for name in names})], []
    for task in names:
        with _going_together(task, folder):
            part, drawn = _part(task, by_task[task], page.parent)
        lines += part
        plots += drawn
    replaced(page, "\n".join(lines).rstrip() + "\n")
    return [page, *plots, *(_copied(copies / file.name, files[file]) for file in files if copies is not None)]


@contextmanager
def _going_together(task: str, folder: Path) -> Iterator[None]:
    """Refuse results of which each is one, but which make no table."""
    try:
        yield
    except InputError:
        raise
    except _ODD as error:
        raise InputError(
            f"The results of {task!r} in {folder} do not go together ({type(error).__name__}): move some "
            f"elsewhere."
        ) from error


def _sections() -> dict[str, type[Section]]:
    """How results are shown, by the name of their task, in the order of the page."""
    return {SpeedSection.name: SpeedSection, **TASKS}


def _first_tables(by_task: dict[str, list[Report]]) -> list[str]:
    """All headlines, and the value of each tier."""
    results = {_sections()[name]: reports for name, reports in by_task.items() if name in _sections()}
    lines: list[str] = []
    for title, part, words in (
        ("All tasks", overview, _OVERVIEW),
        ("The value of each tier", value_of_tiers, _TIERS),
    ):
        found = part(results)
        lines += [f"## {title}", "", words, "", *found, ""] if found else []
    return lines


def _part(task: str, reports: Sequence[Report], folder: Path) -> tuple[list[str], list[Path]]:
    """The lines of a task's part of the page, and the plots that it shows, written into ``folder``.

    Results of other settings stand in tables and plots of their own.
    """
    section = _sections().get(task, Section)
    title = section.title or as_text(task)
    lines, plots = [f"## {title}", ""], list[Path]()
    for words, group in grouped(reports, section.told):
        lines += [f"### {as_text(words)}", ""] if words else []
        lines += [*section.table(group), ""]
        panels = section.panels(group)
        if panels:
            number = f"-{len(plots) + 1}" if plots else ""
            plots.append(writable(folder / f"{task}{number}.png", "--page", PNG))
            draw(panels, plots[-1], title)
            lines += [f"![{title}, {as_text(words)}]({plots[-1].name})", ""]
        lines += [*_commands(group), ""]
    return lines, plots


def _copied(path: Path, report: Report) -> Path:
    """Write a copy of a result with its examples' numbers and conditions alone; returns its path."""
    section = _sections().get(report["task"], Section)
    conditions = (section.axis, section.by)
    examples = [
        {n: value for n, value in example.items() if n in conditions or isinstance(value, int | float)}
        for example in report.get("examples", ())
    ]
    small = {**report, "examples": examples} if examples else report
    parts = (f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in small.items())
    replaced(writable(path, "--copies", _RESULT), "{\n" + ",\n".join(parts) + "\n}\n")
    return path


def _read(file: Path) -> Report:
    """One result, of which a section of the page can be made.

    Raises:
        InputError: it is none.
    """
    try:
        if not file.is_file():
            raise TypeError("no file")
        report = json.loads(file.read_text("utf-8"))
        if not isinstance(report["metrics"], dict) or not isinstance(report["config"], dict):
            raise TypeError("no metrics")
        section = _sections().get(report["task"], Section)
        section.table([report])
        section.panels([report])
        overview({section: [report]})
        value_of_tiers({section: [report]})
        as_text(report["task"])
        _commands([report])
    except (OSError, *_ODD) as error:
        raise InputError(
            f"{file} is no result of hiermem ({type(error).__name__}): move it elsewhere."
        ) from error
    return report


def _commands(reports: Sequence[Report]) -> list[str]:
    """The commands that made the results, in a fence that none of them ends."""
    commands = [report["command"] for report in reports if "command" in report]
    fence = "`" * (max((len(run) for run in re.findall("`+", "".join(commands))), default=0) + 1)
    return ["Made by:", "", f"{fence:`<3}sh", *commands, f"{fence:`<3}"] if commands else []
