"""Settings are of the types that their dataclasses say: checked when one is made, refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from reprlib import Repr
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hiermem.errors import InputError

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", NoneType: "None"}

brief = Repr()
brief.maxother = brief.maxstring = 60


def check_settings(config: Any, kinds: Mapping[str, Any] | None = None) -> None:
    """Refuse settings of a wrong type.

    A part that is given as a dict, as JSON has it, becomes what it is; numbers and arrays of NumPy and torch
    become Python's own. Whole numbers are numbers, truth values are not, and a tuple may be a list.

    Args:
        config: a dataclass.
        kinds: types of the settings that are checked, by name; None: of all.

    Raises:
        InputError: names the setting, its value and what it must be.
    """
    for name, kind in (_kinds(type(config)) if kinds is None else kinds).items():
        before, part = getattr(config, name), _part(kind)
        value = plain(before)
        if part is not None and isinstance(value, dict):
            value = _from_dict(part, value)
        if value is not before:
            object.__setattr__(config, name, value)  # which a frozen one forbids otherwise
        if not fits(value, kind):
            raise InputError(
                f"{type(config).__name__}.{name} must be {words(kind)}, not {brief.repr(value)}."
            )


def plain(value: Any) -> Any:
    """Numbers and arrays of NumPy and torch, also in lists, as Python's own; anything else as it is."""
    if isinstance(value, list | tuple):
        entries = [plain(entry) for entry in value]
        unchanged = all(new is old for new, old in zip(entries, value, strict=True))
        return value if unchanged else type(value)(entries)
    return value.tolist() if hasattr(value, "tolist") else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as settings are annotated with."""
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        return isinstance(value, numbers) and not isinstance(value, bool) and value == value
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in get_args(kind))
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(entry, get_args(kind)[0]) for entry in value)
    plain_kind = origin or kind
    return plain_kind is Any or not isinstance(plain_kind, type) or isinstance(value, plain_kind)


def _kinds(config: Any) -> dict[str, Any]:
    """The types of a dataclass's settings."""
    hints = get_type_hints(config)
    return {setting.name: hints[setting.name] for setting in fields(config)}


def _part(kind: Any) -> Any:
    """The dataclass that a setting is, if it is one."""
    return next((choice for choice in (kind, *get_args(kind)) if is_dataclass(choice)), None)


def _from_dict(part: Any, values: dict[str, Any]) -> Any:
    """A part from its settings by name."""
    settings = {setting.name for setting in fields(part)}
    for unknown in values.keys() - settings:
        choice = ", ".join(sorted(settings))
        raise InputError(f"{part.__name__} has no setting {brief.repr(unknown)}: choose one of {choice}.")
    return part(**values)


def words(kind: Any) -> str:
    """A type as an error calls it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(words, inner))
    if origin is not None and issubclass(origin, Sequence):
        return f"a list with entries that are each {words(inner[0])}"
    return _NAMES.get(kind) or f"of the type {kind.__name__}"
