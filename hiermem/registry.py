"""Registries: classes that users choose by name, with settings by name.

A class is a dataclass whose fields are its settings. It says what it is called, and one line adds it:

    @dataclass(frozen=True)
    class NewestPolicy(EvictionPolicy):
        share: float = 0.5
        name: ClassVar[str] = "newest"

    register_policy(NewestPolicy)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from inspect import isabstract
from types import NoneType
from typing import Any, ClassVar, Generic, Protocol, TypeVar, get_args, get_type_hints

from hiermem.errors import InputError
from hiermem.settings import brief, fits, plain, words

_PLAIN = (bool, int, float, str)


class Named(Protocol):
    """A class that can be chosen by name.

    Attributes:
        name: what it is called.
        aliases: what it was called before.
        supplied: fields that are no settings: who makes it fills them.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]]
    supplied: ClassVar[frozenset[str]]


_Named = TypeVar("_Named", bound=Named)


class Registry(Mapping[str, type[_Named]], Generic[_Named]):
    """Classes by name, in the order in which they were added.

    Args:
        kind: what each of them is, for messages.
        base: class that each of them derives from.
    """

    def __init__(self, kind: str, base: type) -> None:
        self.kind, self.base = kind, base
        self._classes: dict[str, type[_Named]] = {}
        self._names: dict[str, str] = {}  # of aliases, too

    def __getitem__(self, name: str) -> type[_Named]:
        return self._classes[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)

    def register(self, cls: type[_Named]) -> type[_Named]:
        """Add a class under its name and the aliases that it declares itself; returns it.

        Raises:
            InputError: it is of another kind or lacks a method; a name is missing, no identifier, or taken; a
                setting is of no plain type or has no default.
        """
        self._check_class(cls)
        declared = vars(cls)
        for name in (cls.name, *declared.get("aliases", ())):
            if not isinstance(name, str) or not name.isidentifier():
                raise InputError(f"A {self.kind} is named by letters, digits and '_', not by {name!r}.")
            if name in self._names:
                raise InputError(
                    f"There is a {self.kind} {name!r} already: give {cls.__name__} another name."
                )
        required = _required_of(cls)
        for setting, kind in _settings_of(cls).items():
            if _unwrapped(kind)[0] not in _PLAIN:
                raise InputError(f"The setting {setting} of {cls.__name__} is no bool, int, float or str.")
            if setting in required:
                raise InputError(f"The setting {setting} of {cls.__name__} has no default: give it one.")
        self._classes[cls.name] = cls
        self._names |= dict.fromkeys((cls.name, *declared.get("aliases", ())), cls.name)
        return cls

    def _check_class(self, cls: Any) -> None:
        """Refuse what is no class of this kind, or not a whole one.

        Raises:
            InputError: so it is.
        """
        if not (isinstance(cls, type) and issubclass(cls, self.base)):
            raise InputError(f"A {self.kind} is a subclass of {self.base.__name__}, not {brief.repr(cls)}.")
        if isabstract(cls):
            missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
            raise InputError(f"The {self.kind} {cls.__name__} lacks {missing}: write it.")
        if not hasattr(cls, "name"):
            raise InputError(f"The {self.kind} {cls.__name__} has no name: say `name: ClassVar[str] = …`.")

    def canonical(self, name: Any) -> str:
        """The name now of a class that is called by its name or an alias.

        Raises:
            InputError: there is none.
        """
        if not isinstance(name, str) or name not in self._names:
            choice = f"choose one of {', '.join(self)}" if self else "none is registered"
            raise InputError(f"Unknown {self.kind} {name!r}: {choice}.")
        return self._names[name]

    def renamed(self, name: Any) -> Any:
        """The name now of what a file calls a class; anything else as it is."""
        return self._names.get(name, name) if isinstance(name, str) else name

    def check(self, name: str, settings: Any) -> dict[str, Any]:
        """Settings of a class, each of its type; whole numbers become floats where these are meant.

        Raises:
            InputError: the class does not have a setting, or it is of another type.
        """
        if not isinstance(settings, Mapping):
            raise InputError(f"Settings of the {self.kind} {name} are given by name, not as {settings!r}.")
        types = {setting: self._type(name, setting) for setting in settings}
        return {setting: self._checked(name, setting, types[setting], settings[setting]) for setting in types}

    def check_all(self, chosen: Any) -> dict[str, dict[str, Any]]:
        """Settings of several classes by name, or by an alias, sorted by name.

        Raises:
            InputError: as `canonical` and `check`, or one class is named twice.
        """
        if not isinstance(chosen, Mapping):
            raise InputError(f"Each {self.kind} is chosen by its name with its settings, not by {chosen!r}.")
        names = {former: self.canonical(former) for former in chosen}
        if len(set(names.values())) < len(names):
            raise InputError(f"One {self.kind} of {', '.join(names)} is named twice: leave an alias out.")
        order = sorted(names, key=lambda former: names[former])
        return {names[former]: self.check(names[former], chosen[former]) for former in order}

    def parse(self, name: str, assignments: Sequence[str], option: str) -> dict[str, Any]:
        """The same from ``NAME=VALUE``.

        Args:
            option: of the command line, for messages.

        Raises:
            InputError: as `check`, or it is no assignment, or one of several to the same setting.
        """
        settings: dict[str, Any] = {}
        for assignment in assignments:
            setting, equals, text = assignment.partition("=")
            if not (setting and equals):
                raise InputError(f"{option} takes NAME=VALUE, not {assignment!r}.")
            kind = self._type(name, setting)
            if setting in settings:
                raise InputError(f"{option} sets {setting} twice: give it once.")
            settings[setting] = self._checked(name, setting, kind, _read(text, kind))
        return settings

    def build(self, name: str, settings: Mapping[str, Any], **supplied: Any) -> _Named:
        """A new one, with settings and what it is supplied with.

        Raises:
            InputError: it refuses a value.
        """
        return self[name](**self.check(name, settings), **supplied)

    def _type(self, name: str, setting: Any) -> Any:
        """The annotated type of a setting."""
        types = _settings_of(self[name])
        if setting not in types:
            choice = f"it takes {', '.join(types)}" if types else "it takes none"
            raise InputError(f"The {self.kind} {name} has no setting {setting!r}: {choice}.")
        return types[setting]

    def _checked(self, name: str, setting: str, kind: Any, value: Any) -> Any:
        value = plain(value)
        if not fits(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(
                f"The setting {setting} of the {self.kind} {name} must be {words(kind)}, not "
                f"{brief.repr(value)}."
            )
        return float(value) if _unwrapped(kind)[0] is float and value is not None else value


def _settings_of(cls: Any) -> dict[str, Any]:
    """Names and annotated types of a class's settings."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls) if field.init]
    return {name: hints[name] for name in names if name not in cls.supplied}


def _required_of(cls: Any) -> set[str]:
    """Names of a class's fields that have no default."""
    return {field.name for field in fields(cls) if field.default is field.default_factory is MISSING}


def _unwrapped(kind: Any) -> tuple[Any, bool]:
    """The type of a setting without None, and whether it may be None."""
    optional = NoneType in get_args(kind)
    others = [choice for choice in get_args(kind) if choice is not NoneType]
    return (others[0] if optional and len(others) == 1 else kind), optional


def _read(text: str, kind: Any) -> Any:
    """A value from its text; one of another type stays a text."""
    plain, optional = _unwrapped(kind)
    if optional and text.lower() == "none":
        return None
    if plain is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return plain(text)
    except ValueError:
        return text
