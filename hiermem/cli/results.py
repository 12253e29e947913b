"""Results of a measurement: kept in a file, taken up again after a stop, printed."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiermem.cli import options as opt
from hiermem.eval.journal import Journal

Report = dict[str, Any]


def run(
    task: str,
    measure: Callable[[Journal], Report],
    settings: dict[str, Any],
    out: Path | None,
    as_json: bool,
    words: Callable[[Report], str] | None = None,
) -> None:
    """Measure, or take the result of an earlier run with the same settings, and print it.

    Args:
        words: makes the text that is printed; by default metrics and rows, a line each.
    """
    command = f"hiermem {shlex.join(sys.argv[1:])}"
    report = Journal(out, {"task": task, **settings}).report(measure, command)
    opt.emit(report, as_json, (words or _words)(report))


def _words(report: Report) -> str:
    lines = [f"{name}: {value:.4g}" for name, value in report["metrics"].items()]
    for row in report.get("rows", []):
        shown = {name: value for name, value in row.items() if not isinstance(value, list)}
        lines.append("  " + "  ".join(f"{name} {_number(value)}" for name, value in shown.items()))
    return "\n".join([*lines, f"n = {report['n']}, {report['seconds']:.1f} s"])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
