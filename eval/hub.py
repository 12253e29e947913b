"""Datasets by their name on the hub, row by row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hiermem.errors import InputError, first_line

Row = TypeVar("Row")


def is_name(data: Path) -> bool:
    """Whether ``data`` can only be a name on the hub: ``owner/name``, and no such path is there."""
    return not data.exists() and not data.is_absolute() and len(data.parts) == 2 and data.parts[0] != ".."


def rows(
    name: str, split: str, convert: Callable[[dict[str, Any]], Row], subset: str | None = None
) -> Iterator[Row]:
    """Rows of one split, converted and streamed: nothing is downloaded beyond what is taken.

    Raises:
        InputError: there is no such dataset, split or column, or the hub cannot be reached.
    """
    try:
        from datasets import load_dataset
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError(
            "Data from the hub needs the package datasets: install hiermem with the extra harness."
        ) from error
    try:
        if not Path(name).exists():
            HfApi().dataset_info(name, timeout=10)  # says at once what load_dataset says after many retries
        for row in load_dataset(name, subset, split=split, streaming=True):
            yield convert(row)
    except (KeyError, TypeError) as error:
        raise InputError(f"{name} on the hub has other columns than expected ({error}).") from error
    except Exception as error:  # of many libraries: no such name, no network, a script, a damaged file
        raise InputError(
            f"There is no path {name} here, and {split} of it cannot be read from the hub: "
            f"{first_line(error)}."
        ) from error
