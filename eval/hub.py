"""Datasets by their name on the hub, row by row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hiermem.errors import InputError


def is_name(data: Path) -> bool:
    """Whether ``data`` can only be a name on the hub: ``owner/name``, and no such path is there."""
    return not data.exists() and not data.is_absolute() and len(data.parts) == 2 and data.parts[0] != ".."


def rows(name: str, split: str, subset: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of one split, streamed: nothing is downloaded beyond what is taken.

    Raises:
        InputError: there is no such dataset or split, or the hub cannot be reached.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError(
            "Data from the hub needs datasets: install hiermem with the extra harness."
        ) from error
    try:
        yield from load_dataset(name, subset, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".") or type(error).__name__
        raise InputError(f"{name} ({split}) cannot be read from the hub: {reason}.") from error
