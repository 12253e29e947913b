"""Interface of a method: a way to answer questions about a long text around a given backbone.

Every method reads a text once and is then asked any number of times. They differ in what they show the
backbone before the question, and in nothing else: prompts, decoding and scoring are the same.

A method is one file: a subclass of `Method` under `register_method`, and one import in
`hiermem.eval.methods`. Arguments of its constructor beside the model are options of the commands that compare
methods, named in `takes`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from hiermem.asking import PreparedPrompt
from hiermem.errors import InputError

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

Context = TypeVar("Context")


class Method(ABC, Generic[Context]):
    """Reads a text, then makes prompts that a backbone goes on from.

    Args:
        model: the backbone with hiermem around it; its configuration holds the budgets.

    Attributes:
        name: by which a command takes it.
        takes: options of the commands that are arguments of the constructor.
        model_options: options of the model's configuration that it depends on, beside `preset` and `chunk`,
            with which every prompt is read.
        parts: parts of the configuration that it depends on; None: all.
        needs_evidence: whether it reads the evidence of each question in place of the document.
    """

    name: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    model_options: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...] | None] = ("asking",)
    needs_evidence: ClassVar[bool] = False

    def __init__(self, model: "HierMemModel") -> None:
        self.model = model

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Values of the options in `takes` where none is given."""
        parameters = signature(cls.__init__).parameters
        values = {name: parameters[name].default for name in cls.takes}
        return {name: value for name, value in values.items() if value not in (None, Parameter.empty)}

    @classmethod
    def check(cls, config: "HierMemConfig", options: Mapping[str, Any]) -> None:
        """Refuse, before anything is loaded, what cannot be measured.

        Args:
            options: those that were given.

        Raises:
            InputError: an option is missing, or does not go with the configuration.
        """

    @abstractmethod
    def read(self, text: str) -> Context:
        """A text, as the method holds it once it has been read."""

    @abstractmethod
    def prompt(self, context: Context, question: str) -> PreparedPrompt:
        """The question with what the method shows before it; the context stays as it is."""


METHODS: dict[str, type[Method[Any]]] = {}
"""Every method by its name, in the order of the tables."""

_Registered = TypeVar("_Registered", bound=type[Method[Any]])


def register_method(method: _Registered) -> _Registered:
    """Let commands take a method by its name.

    Raises:
        InputError: the name is missing or taken.
    """
    if not getattr(method, "name", ""):
        raise InputError(f"The method {method.__name__} has no name: commands take it by one.")
    if method.name in METHODS:
        raise InputError(
            f"There is a method {method.name!r} already, {METHODS[method.name].__name__}: take another name."
        )
    METHODS[method.name] = method
    return method


def new_method(name: str, model: "HierMemModel", **options: Any) -> Method[Any]:
    """A method by name.

    Args:
        options: for its constructor; None where one is not given.

    Raises:
        InputError: there is no method of that name, it takes no such option, or needs another.
    """
    check_method(name, tuple(METHODS))
    kind, arguments = METHODS[name], {key: value for key, value in options.items() if value is not None}
    check_options(name, arguments)
    kind.check(model.config, arguments)
    return kind(model, **arguments)


def check_method(name: str, choices: Sequence[str]) -> None:
    """Refuse what is no method before anything is loaded.

    Raises:
        InputError: ``name`` is none of ``choices``.
    """
    if name not in choices:
        raise InputError(f"There is no method {name!r}: choose one of {', '.join(choices)}.")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an option that the method would not use.

    Raises:
        InputError: it takes no such option.
    """
    taken = METHODS[name].takes
    for option in options:
        if option not in taken:
            users = [method.name for method in METHODS.values() if option in method.takes]
            raise InputError(
                f"The method {name} takes no --{option}, only {', '.join(users)}: leave --{option} out."
            )


def check_model_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an option of the model's configuration that the method would not use.

    Args:
        options: of the command line, with its defaults.

    Raises:
        InputError: one that was given is not used.
    """
    used = METHODS[name].model_options
    for option, value in options.items():
        if value not in (None, [], "auto") and option not in ("preset", "chunk", *used):
            raise InputError(f"The method {name} does not use --{option.replace('_', '-')}: leave it out.")
