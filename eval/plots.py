"""Plots that go beside a page of results."""

from typing import Any

from hiermem.errors import InputError

PNG = b"\x89PNG\r\n\x1a\n"
"""How every picture begins."""


def new_figure() -> Any:
    """An empty figure of the page's width.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("Plots need matplotlib: install hiermem with the extra eval.") from error
    return Figure(figsize=(9, 3.6), layout="constrained")


def plain_label(name: str) -> str:
    """A name as matplotlib shows it, which takes dollars for formulas and hides what an underscore begins."""
    return name.replace("$", r"\$").removeprefix("_")
