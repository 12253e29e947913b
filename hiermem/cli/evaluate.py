"""`hiermem eval TASK`: one command for each registered task; its fields are the options."""

import sys
from dataclasses import MISSING, Field, fields
from functools import partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup
from typer.main import get_command

from hiermem.cli import options as opt
from hiermem.cli import results
from hiermem.errors import InputError, first_line
from hiermem.eval.prompt_grounds import write_ground
from hiermem.eval.result_log import ResultLog, data_hash
from hiermem.eval.tasks import TASKS, Task
from hiermem.eval.tasks.base import NUMBERS, flag_of, option_of

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig

CONFIGURATION: dict[str, tuple[Any, Any]] = {
    "model": (opt.Model, "smollm2"),
    "preset": (opt.Preset, None),
    "policy": (opt.Policy, None),
    "policy_set": (opt.PolicySet, None),
    "settings": (opt.Settings, None),
    "budget": (opt.Budget, None),
    "segment": (opt.Segment, None),
    "chunk": (opt.Chunk, None),
    "positions": (opt.Positions, None),
    "top_k": (opt.TopK, None),
    "evictor": (opt.EvictorName, None),
    "rerank": (opt.Rerank, None),
    "dtype": (opt.Dtype, None),
    "quantize": (opt.Quantize, None),
    "device": (opt.Device, None),
}
"""Options of the model and its configuration, with their types and defaults."""
ALWAYS = ("model", "settings", "dtype", "quantize", "device")
"""Those that every task takes; the others, as the task says."""
OUTPUT: dict[str, tuple[Any, Any]] = {"out": (opt.Out, None), "json": (opt.Json, False)}


class TaskGroup(TyperGroup):
    """The commands of all tasks that are registered when the command line starts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, task in TASKS.items():
            self.add_command(command_of(task), name)


app = typer.Typer(cls=TaskGroup, help="Measure quality on public tasks.", no_args_is_help=True)


def command_of(task: type[Task]) -> Any:
    """The command of a task, made by typer as of a function with its options for parameters."""

    def command(**values: Any) -> None:
        _run(task, values)

    required_first = sorted(fields(task), key=lambda entry: entry.default is not MISSING)
    parameters = {entry.name: _parameter(task, entry) for entry in required_first}
    for name, (kind, default) in (CONFIGURATION | OUTPUT).items():
        if name in (*ALWAYS, *task.model_options, *OUTPUT) and name not in parameters:
            parameters[name] = Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind, default=default)
    command.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    command.__doc__ = task.__doc__
    builder = typer.Typer(add_completion=False, rich_markup_mode="markdown")
    builder.command(task.name)(command)
    return get_command(builder)


def _parameter(task: type[Task], entry: Field[Any]) -> Parameter:
    """A field of a task as typer reads it from a function."""
    option, kind = option_of(entry), get_type_hints(task)[entry.name]
    default: Any = Parameter.empty if entry.default is MISSING else entry.default
    if kind == NUMBERS:
        kind, default = str, ",".join(map(str, default)) if isinstance(default, tuple) else default
    check = opt.checked_document if option.document else None
    names = [flag_of(entry), *([option.alias] if option.alias else [])]
    info = typer.Option(*names, help=option.help, callback=check, min=option.least, max=option.most)
    return Parameter(entry.name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info], default=default)


def _task(task: type[Task], values: dict[str, Any]) -> Task:
    """The task with the options that were given."""
    hints, options = get_type_hints(task), {}
    for entry in fields(task):
        value = values[entry.name]
        if hints[entry.name] == NUMBERS:
            value = tuple(opt.whole_numbers(value, flag_of(entry)))
        options[entry.name] = value
    return task(**options)


def _configuration(task: Task, values: dict[str, Any]) -> "HierMemConfig":
    names = set(task.model_options) - {"rerank"}
    options = task.configuration_options({name: values[name] for name in names})
    config = opt.configuration(**{"model": values["model"], "preset": None, **options})
    if not (assignments := values["settings"]):
        return task.configure(opt.reranking(config, values.get("rerank")))
    # These import torch.
    from hiermem.cli.assignments import check_free, check_kept, check_used, with_settings

    check_free(assignments, options)
    config = opt.reranking(with_settings(config, assignments), values.get("rerank"))
    check_used(assignments, task.parts())
    config = task.configure(config)
    check_kept(config, assignments)
    return config


def _run(kind: type[Task], values: dict[str, Any]) -> None:
    """Measure, or write the prompts and measure nothing."""
    task = _task(kind, values)
    config = _configuration(task, values)
    data, where = task.load(config), (values["dtype"], values["device"], values["quantize"])
    load_model = partial(opt.load_model, values["model"], config, *where)
    from hiermem.memory.saved import plain_settings  # which imports torch

    needed = task.needs_model(config)
    if needed:
        settings = results.settings(values["model"], config, *where, task.texts(data))
    else:
        settings = {"longterm": plain_settings(config.longterm), "data": data_hash(*task.texts(data))}
        settings |= results.keys_of_units(config)
    settings |= task.settings(data, config)
    if task.exported is not None:
        if values["out"] is not None:
            raise InputError("--dump measures nothing: leave --out away.")
        count = task.export(load_model(), data)
        write_ground(task.exported, task.name, settings)
        result = {"prompts": str(task.exported), "n": count}
        opt.emit(result, values["json"], f"Wrote {count} prompts to {task.exported}.")
        return

    def measure(log: ResultLog) -> dict[str, Any]:
        return task.measure(load_model() if needed else None, data, log)

    results.run(task.name, measure, settings, values["out"], values["json"])


def report(
    folder: Annotated[Path, typer.Argument(help="Folder with the JSON files that --out wrote.")],
    page: Annotated[Path, typer.Option(help="Markdown page to write; its plots go beside it.")] = Path(
        "report.md"
    ),
    copies: Annotated[
        Path | None,
        typer.Option(help="Folder for small copies of the results, without the texts of single answers."),
    ] = None,
    json: opt.Json = False,
) -> None:
    """Make one page with tables and plots from a folder of results.

    Example:

        hiermem report results --page results/README.md

        hiermem report results --page docs/results/README.md --copies docs/results
    """
    from hiermem.eval.report import build

    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: give the one that --out wrote into.")
    files = [str(path) for path in build(folder, page, copies)]
    opt.emit({"written": files}, json, f"Wrote {', '.join(files)}.")


def lm_eval(context: typer.Context) -> None:
    """lm-evaluation-harness with the model `hiermem`; all its own options.

    Example:

        hiermem lm-eval --model hiermem --model_args pretrained=smollm2,preset=full --tasks lambada_openai
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ModuleNotFoundError as error:
        raise InputError(f"lm-eval needs {error.name}: install hiermem with the extra harness.") from error
    from hiermem.cli import harness  # noqa: F401 - adds the model to lm_eval's table

    sys.argv = ["lm_eval", *context.args]
    try:
        cli_evaluate()
    except (ValueError, KeyError, TypeError, OSError) as error:  # what the harness makes of its arguments
        if isinstance(error, InputError):
            raise
        raise InputError(f"lm-eval stopped: {first_line(error)}.") from error
