"""Content of a memory on disk, taken piece by piece: whatever is not as this library leaves it is refused.

A seal tells damage alone, so nothing is believed: names, types, shapes and ranges are those that the model
and the settings at hand give, and nothing is left over. All errors are plain ValueErrors; `MemoryState` says
of which memory.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.settings import fits

MOST = 2**31 - 1
"""Of a whole number in settings."""

LONGEST = 1000
"""Characters of a text in settings."""

_T = TypeVar("_T")


class Stored:
    """Tensors by name, each to be taken once.

    Args:
        tensors: what there is.
        of: what messages put before names.
    """

    def __init__(self, tensors: Mapping[str, Tensor], of: str = "") -> None:
        self._left, self._of = dict(tensors), of

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def __bool__(self) -> bool:
        return bool(self._left)

    def within(self, group: str) -> "Stored":
        """Those called ``<group>.<name>``, by their names alone."""
        group_tensors = {name: t for name, t in self._left.items() if name.startswith(group + ".")}
        self._left = {name: t for name, t in self._left.items() if name not in group_tensors}
        start = len(group) + 1
        return Stored({name[start:]: t for name, t in group_tensors.items()}, f"{self._of}{group}.")

    def all(self) -> dict[str, Tensor]:
        """All that are left, by name, taken as they are."""
        left, self._left = self._left, {}
        return left

    def take(self, name: str, dtype: torch.dtype | Collection[torch.dtype], *shape: int | None) -> Tensor:
        """One of them, of the dtype, or of one of several, and of the shape, where None stands for any size.

        Raises:
            ValueError: there is none, it is of another kind, or not finite.
        """
        tensor = self.take_unread(name, dtype, *shape)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ValueError(f"{self._of}{name} holds NaN or infinity")
        return tensor

    def take_unread(
        self, name: str, dtype: torch.dtype | Collection[torch.dtype], *shape: int | None
    ) -> Tensor:
        """The same, but its numbers are not looked at: of a mapped file that would read all of it.

        Raises:
            ValueError: there is none, or it is of another kind.
        """
        if name not in self._left:
            raise ValueError(f"{self._of}{name} is missing")
        tensor = self._left.pop(name)
        dtypes = (dtype,) if isinstance(dtype, torch.dtype) else dtype
        if tensor.dtype not in dtypes:
            raise ValueError(f"{self._of}{name} is of another type")
        fits = [size is None or size == actual for size, actual in zip(shape, tensor.shape, strict=False)]
        if len(shape) != tensor.ndim or not all(fits):
            raise ValueError(f"{self._of}{name} has another shape")
        return tensor

    def done(self) -> None:
        """Refuse what was not taken."""
        if self._left:
            raise ValueError(f"there is no place for {self._of}{shortened(min(self._left))}")


def in_range(tensor: Tensor, least: int, most: int, name: str) -> Tensor:
    """The whole numbers of a tensor, all within a range."""
    if tensor.numel() and not (least <= int(tensor.min()) and int(tensor.max()) <= most):
        raise ValueError(f"{name} leaves its range")
    return tensor


def whole(value: Any, name: str, least: int = 0, most: int = MOST) -> int:
    """A whole number within a range."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name} is not a whole number from {least} to {most}")
    return value


def wholes(values: Any, name: str, least: int = 0, most: int = MOST) -> list[int]:
    """A list of a whole number: a memory on disk has one row."""
    if not isinstance(values, list) or len(values) != 1:
        raise ValueError(f"{name} is not of one row")
    return [whole(values[0], name, least, most)]


def exactly(value: Any, names: Collection[str], what: str, optional: Collection[str] = ()) -> dict[str, Any]:
    """A dict with all of the names and, beside the optional ones, no other."""
    if not isinstance(value, dict) or not set(names) <= set(value) <= {*names, *optional}:
        raise ValueError(f"{what} has other entries")
    return value


def words(value: Any, name: str) -> str:
    """A short text that can be printed."""
    if not isinstance(value, str) or len(value) > LONGEST or not (value.isprintable() or not value):
        raise ValueError(f"{name} is not a short text")
    return value


def read_bookkeeping(bookkeeping: Any, parts: int | None = None) -> dict[str, Any]:
    """`WorkingMemory.bookkeeping` of one row, checked by itself.

    Args:
        parts: how many parts there are; None: any.

    Raises:
        ValueError: it is not.
    """
    counts = exactly(
        bookkeeping, ("seen", "columns", "peak_tokens", "next_frame", "holes"), "the bookkeeping"
    )
    seen = wholes(counts["seen"], "seen")
    if [whole(counts["columns"], "columns")] != seen:
        raise ValueError("seen and columns differ")
    whole(counts["peak_tokens"], "peak_tokens", 0, seen[0])
    wholes(counts["next_frame"], "next_frame")
    ragged = counts["holes"]
    if not isinstance(ragged, list) or not all(type(value) is bool for value in ragged):
        raise ValueError("holes is not a list of truth values")
    if parts is not None and len(ragged) != parts:
        raise ValueError("the caches are of another number of parts")
    return counts


def settings(kind: type[_T], values: Any, younger: Mapping[type, Mapping[str, Any]]) -> _T:
    """A dataclass of settings from JSON.

    Args:
        younger: of a dataclass, the settings that may be missing as they are younger than the format, and
            what was done before there were any.

    Raises:
        InputError: a setting is missing, unknown or of another type, or the dataclass refuses its value.
    """
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} has no settings of this kind.")
    values = {**younger.get(kind, {}), **values}
    if wrong := {field.name for field in fields(kind)} ^ set(values):
        raise InputError(f"{kind.__name__} has no setting {shortened(min(wrong))}, or lacks it.")
    return kind(**{name: _setting(hints[name], value, name, younger) for name, value in values.items()})


def _setting(hint: Any, value: Any, name: str, younger: Mapping[type, Mapping[str, Any]]) -> Any:
    if is_dataclass(hint) and isinstance(hint, type):
        return settings(hint, value, younger)
    if not (fits(value, hint) and _is_bounded(value)):
        raise InputError(f"The setting {name} cannot have the value {shortened(value)}.")
    return value


def _is_bounded(value: Any) -> bool:
    """Whether all numbers and texts of a setting are of a size that one could have."""
    if isinstance(value, dict):
        return all(map(_is_bounded, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(_is_bounded, value))
    if isinstance(value, str):
        return len(value) <= LONGEST
    return value is None or (abs(value) <= MOST if isinstance(value, int) else math.isfinite(value))


def shortened(value: Any) -> str:
    """Something for a message, whatever it is made of."""
    text = value if isinstance(value, str) else repr(value)
    return ascii(text if len(text) <= 60 else text[:60] + "…")
