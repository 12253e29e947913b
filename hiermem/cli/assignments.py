"""`--set PART.NAME=VALUE`: settings of the configuration that have no option of their own."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from hiermem.config import HierMemConfig
from hiermem.errors import InputError

OPTION = "--set"
_ELSEWHERE = {"working.policy": "--policy", "working.policy_settings": "--policy-set"}
_OPTIONS = {
    "working.budget": "budget",
    "working.positions": "positions",
    "working.update_interval": "chunk",
    "longterm.top_k": "top_k",
}
"""Settings that options set too."""
Path = tuple[str, ...]


class _Branch(dict[str, Any]):
    """Values within a part, by name."""


def with_settings(config: HierMemConfig, assignments: Sequence[str]) -> HierMemConfig:
    """The same configuration with other settings, all of them at once.

    Raises:
        InputError: one is no assignment, there is no such setting, it is given twice, or a value is refused.
    """
    changes = _Branch()
    for path, value in _parsed(config, assignments).items():
        within = changes
        for name in path[:-1]:
            within = within.setdefault(name, _Branch())
            if not isinstance(within, _Branch):
                raise _twice(path)
        if path[-1] in within:
            raise _twice(path)
        within[path[-1]] = value
    parts = config.settings()
    return HierMemConfig(**parts | {name: _changed(parts[name], values) for name, values in changes.items()})


def sets(assignments: Sequence[str], part: str) -> bool:
    """Whether one of these sets a part, or something in it."""
    return any(_is_within(assignment.partition("=")[0], part) for assignment in assignments)


def check_used(assignments: Sequence[str], parts: Collection[str] | None) -> None:
    """Refuse a setting that nothing would depend on.

    Args:
        parts: those of the configuration that are used, or settings in them; None: all.

    Raises:
        InputError: one belongs to another part.
    """
    for name in (assignment.partition("=")[0] for assignment in assignments):
        if parts is not None and not any(_is_within(name, part) for part in parts):
            used = f"only settings of {', '.join(parts)}" if parts else "no settings of the configuration"
            raise InputError(f"{name} would change nothing here, {used} would: leave it out of {OPTION}.")


def with_used_settings(
    config: HierMemConfig, assignments: Sequence[str], parts: Collection[str]
) -> HierMemConfig:
    """The same configuration with other settings, all of them in these parts.

    Raises:
        InputError: as `with_settings` and `check_used`.
    """
    changed = with_settings(config, assignments)
    check_used(assignments, parts)
    return changed


def check_free(assignments: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse a setting whose own option is given, too.

    Raises:
        InputError: so it is.
    """
    for name in (assignment.partition("=")[0] for assignment in assignments):
        if options.get(_OPTIONS.get(name, "")) is not None:
            raise InputError(f"{name} is set by an option of its own, too: leave it out of {OPTION}.")


def check_kept(config: HierMemConfig, assignments: Sequence[str]) -> None:
    """Refuse a setting in whose place another option, or the task itself, has put another value.

    Raises:
        InputError: so it is.
    """
    assigned = with_settings(config, assignments)
    for path in _parsed(config, assignments):
        if _value(config, path) != _value(assigned, path):
            raise InputError(f"{'.'.join(path)} is set by another option or by the task: leave it out.")


def _parsed(config: HierMemConfig, assignments: Sequence[str]) -> dict[Path, Any]:
    """Values by the path of their setting."""
    values: dict[Path, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        path = tuple(name.split("."))
        if not equals or len(path) < 2:
            raise InputError(
                f"{OPTION} takes PART.NAME=VALUE, such as longterm.keys.dense={{}}, not {assignment!r}."
            )
        for setting, option in _ELSEWHERE.items():
            if _is_within(name, setting):
                raise InputError(f"{OPTION} does not choose a policy: give {option}.")
        if path in values:
            raise InputError(f"{OPTION} sets {name} twice: give it once.")
        if is_dataclass(_value(config, path)):
            raise InputError(f"{name} is a part of the configuration: give one of its settings.")
        values[path] = text if isinstance(_value(config, path), str) else _read(text)
    return values


def _is_within(name: str, part: str) -> bool:
    """Whether a setting is a part, or in it."""
    return name == part or name.startswith(f"{part}.")


def _twice(path: Path) -> InputError:
    return InputError(f"{OPTION} sets {'.'.join(path)} by two assignments: give one.")


def _value(config: HierMemConfig, path: Path) -> Any:
    """The part or setting that a path leads to; settings of what is chosen by name, such as a tier, may be
    anything.

    Raises:
        InputError: nowhere.
    """
    value: Any = config
    for depth, name in enumerate(path):
        if isinstance(value, dict):
            value = value.get(name, {} if depth < len(path) - 1 else None)
            continue
        if value is config:
            names = [part for part, setting in config.settings().items() if is_dataclass(setting)]
        else:
            names = [entry.name for entry in fields(value)] if is_dataclass(value) else []
        if name not in names:
            choice = f"choose one of {', '.join(names)}" if names else "give the setting alone"
            raise InputError(f"There is no setting {'.'.join(path[: depth + 1])!r}: {choice}.")
        value = getattr(value, name)
    return value


def _changed(part: Any, values: _Branch) -> Any:
    """A part with other values of its settings and of those of its own parts."""
    present = part if isinstance(part, dict) else {name: getattr(part, name) for name in values}
    changes = {
        name: _changed(present.get(name, {}), value) if isinstance(value, _Branch) else value
        for name, value in values.items()
    }
    return {**part, **changes} if isinstance(part, dict) else replace(part, **changes)


def _read(text: str) -> Any:
    """A value as JSON has it, or none; anything else stays a text, which is taken or refused as one."""
    if text.lower() == "none":
        return None
    try:
        return json.loads(text, parse_constant=_refused)
    except ValueError:
        return text


def _refused(constant: str) -> None:
    """NaN and infinity, which JSON does not have."""
    raise ValueError(constant)
