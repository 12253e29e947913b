"""Markdown tables of results."""

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from hiermem.eval.comparison import Report

__all__ = ["Report", "as_text", "between", "cell", "rows_of", "table"]


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
