"""JSON files of data sets, with every odd line refused by its place."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hiermem.errors import InputError

Row = TypeVar("Row")


def read_json(path: Path) -> Any:
    """The content of one JSON file.

    Raises:
        InputError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): give the official file.") from error


def read_lines(path: Path, convert: Callable[[str, dict[str, Any]], Row]) -> list[Row]:
    """Values that ``convert`` makes of each line, which is one JSON object, and of its number, as text.

    Raises:
        InputError: the file cannot be read, has no lines, or one of them is odd: ``convert`` raised KeyError,
            TypeError or ValueError.
    """
    found = []
    for number, row in _objects(path):
        try:
            found.append(convert(number, row))
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"{path} has no {error} in line {number}: mend it, or take it out.") from error
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}, line {number}: {error}; mend it, or take it out.") from error
    if not found:
        raise InputError(f"{path} holds nothing: give a file with one JSON object a line.")
    return found


def first_line_of(path: Path) -> dict[str, Any]:
    """The first object of a file of lines; empty where the file is.

    Raises:
        InputError: it cannot be read.
    """
    return next(_objects(path), ("", {}))[1]


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"{path} has no JSON object in line {number}: mend it, or take it out.")
                yield str(number), row
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as lines of JSON ({error}).") from error


def split_file(data: Path, split: str, ending: str) -> Path:
    """The file of a split, ``data/split + ending``.

    Raises:
        InputError: there is no such file; the splits that there are, are named.
    """
    path = data / f"{split}{ending}"
    if not path.is_file():
        there = sorted(each.name.removesuffix(ending) for each in data.glob(f"*{ending}"))
        known = f"choose one of {', '.join(there)}" if there else f"there is no {path.name}"
        raise InputError(f"{data} has no split {split!r}: {known}.")
    return path


def filled(value: Any, what: str) -> str:
    """A text that says something, without white space around it.

    Raises:
        ValueError: it is another thing, or blank.
    """
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} must be a text that is not blank, not {value!r}")
    return value.strip()


def texts(values: Any, what: str) -> tuple[str, ...]:
    """Texts that each say something.

    Raises:
        ValueError: it is no list, or one of them is no text, or blank.
    """
    if not isinstance(values, list):
        raise ValueError(f"{what} must be a list of texts, not {values!r}")
    return tuple(filled(value, f"each of {what}") for value in values)
