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
    """Refuse settings of a wrong type; a part that is given as a dict, as JSON has it, becomes what it is.

    Whole numbers are numbers, truth values are not, and a tuple may be a list.

    Args:
        config: a dataclass.
        kinds: types of the settings that are checked, by name; None: of all.

    Raises:
        InputError: names the setting, its value and what it must be.
    """
    for name, kind in (_kinds(type(config)) if kinds is None else kinds).items():
        value, part = getattr(config, name), _part(kind)
        if part is not None and isinstance(value, dict):
            value = _made(part, value)
            object.__setattr__(config, name, value)  # which a frozen one forbids otherwise
        if not fits(value, kind):
            raise InputError(
                f"{type(config).__name__}.{name} must be {words(kind)}, not {brief.repr(value)}."
            )


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, as settings are annotated with."""
    if kind in (int, float):
        wanted = (int, float) if kind is float else int
        return isinstance(value, wanted) and not isinstance(value, bool) and value == value
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in get_args(kind))
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, get_args(kind)[0]) for one in value)
    wanted = origin or kind
    return wanted is Any or not isinstance(wanted, type) or isinstance(value, wanted)


def _kinds(config: Any) -> dict[str, Any]:
    """The types of a dataclass's settings."""
    hints = get_type_hints(config)
    return {one.name: hints[one.name] for one in fields(config)}


def _part(kind: Any) -> Any:
    """The dataclass that a setting is, if it is one."""
    return next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)


def _made(part: Any, given: dict[str, Any]) -> Any:
    known = {one.name for one in fields(part)}
    for unknown in given.keys() - known:
        choice = ", ".join(sorted(known))
        raise InputError(f"{part.__name__} has no setting {brief.repr(unknown)}: choose one of {choice}.")
    return part(**given)


def words(kind: Any) -> str:
    """A type as an error calls it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(words, inner))
    if origin is not None and issubclass(origin, Sequence):
        return f"a list with entries that are each {words(inner[0])}"
    return _NAMES.get(kind) or f"of the type {kind.__name__}"
