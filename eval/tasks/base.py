"""Evaluation tasks: a dataclass whose fields are the options of its command, `hiermem eval NAME`.

A task is one file: a subclass of `Task` under `register`, and one import in `hiermem.eval.tasks`. Its
command, its result file and its part of the report follow from that:

    @register
    @dataclass(frozen=True, kw_only=True)
    class Repeats(Task):
        \"""How likely the model finds each word a second time.

        Example:

            hiermem eval repeats --text words.txt
        \"""

        name = "repeats"
        title = "Repeated words"
        text: Path = option(help="Text file with words.")

        def load(self, config):
            return self.text.read_text("utf-8").split()

        def texts(self, data):
            return data

        def rows(self, model, data, log):
            rows = [log.row(word, score, model, word) for word in data]
            mean = sum(row["nll"] for row in rows) / len(rows)
            return {"metrics": {"nll": mean}, "rows": rows, "n": len(rows)}

A task imports torch, and what needs it, where it measures: help and refusals do not wait for that.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_type_hints

from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.section import Section

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel


NUMBERS = tuple[int, ...]
"""Type of a field that is numbers with commas between on the command line."""
OPTION_TYPES = (NUMBERS, *(kind for plain in (str, int, float, bool, Path) for kind in (plain, plain | None)))
MODEL_OPTIONS = (
    "preset",
    "policy",
    "policy_set",
    "budget",
    "segment",
    "chunk",
    "positions",
    "top_k",
    "evictor",
    "rerank",
)
"""Options of the model's configuration that a task may take."""
PEERS = (
    "indexed",
    "full",
    "truncated",
    "streaming",
    "pruned",
    "compressed",
    "bm25",
    "dense",
    "hybrid",
    "closed",
)
"""Methods beside hiermem, for the help; `hiermem.eval.methods.METHODS` registers them, with torch."""
ENCODER_HELP = "Sentence encoder: minilm (of the extra dense), or a folder or hub id"
OUTPUT_OPTIONS = ("out", "json")
"""Options of every command, which no task sees."""


@dataclass(frozen=True)
class Option:
    """How a field of a task stands on the command line.

    Attributes:
        help: one line of its help.
        flag: its name there; by default, the field's own with dashes.
        alias: a second name.
        least: smallest number that is taken.
        most: largest number that is taken.
        document: whether it is a document by name, which is refused at once where it cannot be read.
    """

    help: str
    flag: str | None = None
    alias: str | None = None
    least: float | None = None
    most: float | None = None
    document: bool = False

    def check(self, flag: str, value: Any) -> None:
        """Refuse a number that is out of range.

        Raises:
            InputError: it is.
        """
        if value is None:
            return
        if self.least is not None and value < self.least:
            raise InputError(f"{flag} must be at least {self.least}, not {value}.")
        if self.most is not None and value > self.most:
            raise InputError(f"{flag} must be at most {self.most}, not {value}.")


def option(
    default: Any = MISSING,
    *,
    help: str,
    flag: str | None = None,
    alias: str | None = None,
    least: float | None = None,
    most: float | None = None,
    document: bool = False,
) -> Any:
    """A field of a task that is an option of its command; without a default, it must be given."""
    return field(default=default, metadata={"option": Option(help, flag, alias, least, most, document)})


def option_of(entry: "Field[Any]") -> Option:
    """How a field stands on the command line."""
    found: Option = entry.metadata["option"]
    return found


def flag_of(entry: "Field[Any]") -> str:
    """The name of a field on the command line."""
    return option_of(entry).flag or f"--{entry.name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Task(Section, ABC):
    """An evaluation of a model. The docstring of a subclass is the help of its command.

    Attributes:
        name: of the command and of its results.
        model_options: those of `MODEL_OPTIONS` that the command takes, beside those that every one takes:
            model, settings (`--set`), dtype, quantize and device. A field of the same name replaces the help
            and the default.
    """

    name: ClassVar[str]
    model_options: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for entry in fields(self):
            option_of(entry).check(flag_of(entry), getattr(self, entry.name))

    # ---- before anything is loaded

    def configuration_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that the configuration is made of, from those given on the command line."""
        return options

    def configure(self, config: "HierMemConfig") -> "HierMemConfig":
        """The configuration with what this task sets itself.

        Raises:
            InputError: nothing can be measured with it.
        """
        return config

    def parts(self) -> tuple[str, ...] | None:
        """Parts of the configuration that the results depend on, such as ``working``; None: all."""
        return None

    def needs_model(self, config: "HierMemConfig") -> bool:
        """Whether a model is loaded at all."""
        return True

    @abstractmethod
    def load(self, config: "HierMemConfig") -> Any:
        """The data, in whatever form `rows` wants it.

        Raises:
            InputError: there is none, or none that can be measured with this configuration.
        """

    @abstractmethod
    def texts(self, data: Any) -> Iterable[str]:
        """All that the results depend on in the data, for the hash in their settings."""

    def settings(self, data: Any, config: "HierMemConfig") -> dict[str, Any]:
        """Settings of the results beside the model, its configuration and the texts, as JSON holds them.

        By default, all fields; of a path and of a document, its name without folders.
        """
        values = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            by_name = isinstance(value, Path) or (option_of(entry).document and value is not None)
            values[entry.name] = Path(value).name if by_name else value
        return values

    # ---- with the model

    def measure(self, model: "HierMemModel | None", data: Any, log: ResultLog) -> dict[str, Any]:
        """The results of a run, without gradients: see `rows`."""
        import torch

        with torch.inference_mode():
            return self.rows(model, data, log)

    @abstractmethod
    def rows(self, model: Any, data: Any, log: ResultLog) -> dict[str, Any]:
        """Measure.

        Args:
            model: a `HierMemModel`; None where none is needed.
            data: from `load`.
            log: `log.row(key, function, …)` keeps each part, so that a run that was stopped goes on.

        Returns ``metrics`` (numbers by name) and ``n``; ``rows`` and ``intervals`` where there are some.
        """

    # ---- in place of a measurement

    @property
    def exported(self) -> Path | None:
        """A file that the prompts are written to, with nothing measured; None: measure."""
        return None

    def export(self, model: "HierMemModel", data: Any) -> int:
        """Write the prompts to `exported`; returns how many."""
        raise NotImplementedError


TASKS: dict[str, type[Task]] = {}
"""Every task by its name, in the order of the commands and of the page."""

_Registered = TypeVar("_Registered", bound=type[Task])


def register(task: _Registered) -> _Registered:
    """Give a task its command, and its results their part of the report.

    Raises:
        InputError: there is no docstring, the name is missing, odd or taken, or a field is no `option` of a
            known type.
    """
    if not getattr(task, "name", ""):
        raise InputError(f"The task {task.__name__} has no name: it is that of its command.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", task.name):
        raise InputError(f"A task is named by small letters, digits and '-', not by {task.name!r}.")
    if task.name in TASKS:
        raise InputError(
            f"There is a task {task.name!r} already, {TASKS[task.name].__name__}: take another name."
        )
    # Without one, a dataclass writes its signature there.
    if not (task.__doc__ or "").strip() or str(task.__doc__).startswith(f"{task.__name__}("):
        raise InputError(f"The task {task.name!r} has no docstring: it is the help of its command.")
    for name in set(task.model_options) - set(MODEL_OPTIONS):
        raise InputError(f"There is no option {name} of the model: choose of {', '.join(MODEL_OPTIONS)}.")
    hints = get_type_hints(task)
    for entry in fields(task):
        if "option" not in entry.metadata:
            raise InputError(
                f"The field {entry.name!r} of the task {task.name!r} is no option: use `option(…)`."
            )
        if entry.name in OUTPUT_OPTIONS:
            raise InputError(
                f"The option {entry.name} is one of every task: take another name in {task.name!r}."
            )
        if hints[entry.name] not in OPTION_TYPES:
            raise InputError(
                f"The field {entry.name!r} of the task {task.name!r} is of a type that no option has: use "
                f"str, int, float, bool or Path, each maybe None, or tuple[int, ...]."
            )
    TASKS[task.name] = task
    return task


def method_option(*more: str) -> Any:
    """The field that chooses a method; None until the task is made.

    Args:
        more: methods of this task alone, for the help.
    """
    peers = ", ".join((*PEERS, *more))
    return option(
        None,
        help=f"hiermem, or a peer: {peers}; default: hiermem, or pruned where --keep is given.",
        alias="--system",
    )


@dataclass(frozen=True, kw_only=True)
class MethodTask(Task):
    """A task that measures hiermem and other methods around the same backbone.

    Attributes:
        names_evidence: whether questions name their evidence, which some methods need.
    """

    names_evidence: ClassVar[bool] = False

    method: str = method_option()

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        """Names that the option method takes."""
        from hiermem.eval.methods import METHODS

        return tuple(name for name, each in METHODS.items() if cls.names_evidence or not each.needs_evidence)

    def __post_init__(self) -> None:
        from hiermem.eval.methods import check_method, check_options

        super().__post_init__()
        check_method(self.method, self.methods())
        check_options(self.method, self.chosen_options())

    @abstractmethod
    def chosen_options(self) -> dict[str, Any]:
        """Options of the method that were given, by name."""

    def method_options(self) -> dict[str, Any]:
        """Options of the method, its own defaults among them: they are settings of a run."""
        from hiermem.eval.methods import METHODS

        return METHODS[self.method].defaults() | self.chosen_options()

    def configuration_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same; what the method would not use is refused."""
        from hiermem.eval.methods import check_model_options

        check_model_options(self.method, options)
        return options

    def configure(self, config: "HierMemConfig") -> "HierMemConfig":
        from hiermem.eval.methods import METHODS

        METHODS[self.method].check(config, self.method_options())
        return config

    def parts(self) -> tuple[str, ...] | None:
        from hiermem.eval.methods import METHODS

        return METHODS[self.method].parts

    def new_method(self, model: "HierMemModel") -> "Method[Any]":
        """The method around this model."""
        from hiermem.eval.methods import new_method

        return new_method(self.method, model, **self.method_options())


@dataclass(frozen=True, kw_only=True)
class AnswerTask(MethodTask):
    """A task whose questions all methods answer."""

    model_options = ("preset", "policy", "policy_set", "budget", "segment", "chunk", "top_k", "evictor")
    of_tiers = True

    keep: float | None = option(
        None, help="Share of a text that --method pruned or compressed keeps.", least=0.0, most=1.0
    )
    passages: int | None = option(
        None, help="Passages of 128 tokens that a method of retrieval shows; default: 4.", least=1
    )
    encoder: str | None = option(None, help=f"{ENCODER_HELP}, for --method dense or hybrid; default: minilm.")

    def __post_init__(self) -> None:
        if self.method is None:
            object.__setattr__(self, "method", "hiermem" if self.keep is None else "pruned")
        super().__post_init__()
        if self.keep == 0:
            raise InputError("A share of 0 keeps nothing: raise --keep.")

    def configuration_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The same; what the method would not use is refused."""
        options = super().configuration_options(options)
        if self.keep is not None and options["budget"] is not None:
            raise InputError("--keep takes the place of --budget: leave one of them out.")
        return options

    def chosen_options(self) -> dict[str, Any]:
        values = {"keep": self.keep, "passages": self.passages, "encoder": self.encoder}
        return {name: value for name, value in values.items() if value is not None}
