"""One Markdown page with tables and plots from the JSON results of a folder; each task brings its own."""

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from hiermem.errors import InputError
from hiermem.eval.plots import PNG
from hiermem.eval.result_log import replaced, writable
from hiermem.eval.speed import SpeedSection
from hiermem.eval.tables import Report, Section, as_text
from hiermem.eval.tasks import TASKS

_ODD = (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors that come of results that are none."""

_TITLE = b"# Results"


def build(folder: Path, page: Path) -> list[Path]:
    """Write ``page`` and, beside it, its plots; returns all files written.

    Raises:
        InputError: the folder holds no results, or a file that is none.
    """
    by_task: dict[str, list[Report]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        report = _read(file)
        by_task[report["task"]].append(report)
    if not by_task:
        raise InputError(f"There are no results in {folder}: make some with `hiermem eval … --out`.")
    writable(page, "--page", _TITLE)
    lines, plots = [_TITLE.decode(), ""], []
    registered = [name for name in _sections() if name in by_task]
    for task in [*registered, *sorted(set(by_task) - set(registered))]:
        try:
            part, drawn = _part(task, by_task[task], page.parent)
        except InputError:
            raise
        except _ODD as error:
            raise InputError(
                f"The results of {task!r} in {folder} do not go together ({type(error).__name__}): move some "
                f"elsewhere."
            ) from error
        lines += part
        plots += drawn
    replaced(page, "\n".join(lines).rstrip() + "\n")
    return [page, *plots]


def _sections() -> dict[str, type[Section]]:
    """How results are shown, by the name of their task, in the order of the page."""
    return {SpeedSection.name: SpeedSection, **TASKS}


def _part(task: str, reports: Sequence[Report], folder: Path) -> tuple[list[str], list[Path]]:
    """The lines of a task's part of the page, and the plots that it shows, written into ``folder``."""
    section = _sections().get(task, Section)
    title = section.title or as_text(task)
    lines, plots = [f"## {title}", "", *section.table(reports)], []
    if section.plots:
        plots.append(writable(folder / f"{task}.png", "--page", PNG))
        section.plot(reports, plots[0])
        lines += ["", f"![{title}]({plots[0].name})"]
    return [*lines, "", *_commands(reports), ""], plots


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
