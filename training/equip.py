"""`hiermem equip`: the whole hierarchy for a backbone, stage by stage, on one process or many.

    deepspeed --num_accelerators 2 --module hiermem.training.equip Qwen/Qwen2.5-0.5B-Instruct \\
        --data data --out runs/equipped --size small --deepspeed ds_config.json

A stage begins from the model of the one before and is judged by validation figures. Where these get worse,
its model is left out and the next begins from what there was. A run that was stopped goes on within its
stage.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from hiermem.config import HierMemConfig
from hiermem.ending import end
from hiermem.errors import HierMemError, InputError
from hiermem.eval.result_log import check_apart, replaced
from hiermem.loading import saved_model
from hiermem.memory.digest import digest
from hiermem.saving import check_target
from hiermem.seal import CARD
from hiermem.training.checkpoints import run_lock
from hiermem.training.distributed import barrier, one_of_many, rank, world
from hiermem.training.equip_card import card_of
from hiermem.training.equip_sizes import SIZES, EquipConfig
from hiermem.training.preparation import Run
from hiermem.training.stages import Judge, Stage, loaded, saved
from hiermem.training.validation import Figures, Validation

LEDGER = "stages.json"
"""File of what the stages have made so far."""


@dataclass
class Ledger:
    """Record of what was done so far, kept in a file.

    Attributes:
        path: of the file.
        settings: of the run, as JSON.
        seconds: spent on each stage, by its name.
        done: what each stage made, in their order.
        compared: validation figures at the end, by what they are of.
    """

    path: Path
    settings: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[dict[str, Any]] = field(default_factory=list)
    compared: dict[str, dict[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, settings: dict[str, Any]) -> "Ledger":
        """That of a folder, or a new one.

        Raises:
            InputError: it is damaged, or of a run with other settings.
        """
        path = folder / LEDGER
        if not path.exists():
            return cls(path, settings)
        try:
            found = cls(path, **json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged: give another folder to --out.") from error
        if found.settings != settings:
            raise InputError(
                f"{folder} is of a run with other settings: give the same size, stages and data again, or "
                f"another folder to --out."
            )
        return found

    @property
    def kept(self) -> dict[str, Any]:
        """The last line whose model was kept."""
        return next(entry for entry in reversed(self.done) if entry["kept"])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time within to a stage, and keep what was done, however it ends."""
        start, before = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(before + time.monotonic() - start, 1)
            if rank() == 0:
                values = {name: value for name, value in vars(self).items() if name != "path"}
                replaced(self.path, json.dumps(values, indent=1))


def equip(config: EquipConfig, run: Run, skip: Collection[str] = ()) -> dict[str, Any]:
    """Give a backbone the whole hierarchy, or go on where an earlier run in ``run.output`` stopped.

    Args:
        config: stages and validation.
        run: ``run.model`` is a plain backbone, ``run.output`` the folder of all stages and, at the end, of
            the model.
        skip: names of stages that are left out.

    Returns:
        `out`, the folder; `stages`, of each `name`, `seconds`, the mean validation figure `before` and
        `after`, and whether its model was `kept`; `figures`, of what the model is compared with.

    Raises:
        InputError: the backbone is a saved model, data are missing, a stage is unknown, or the folder is of a
            run with other settings.
    """
    check(config, run, skip)
    with one_of_many(always=run.deepspeed is not None) as first, run_lock(run.output, writes=first):
        stages = [stage for stage in config.stages if stage.name not in skip]
        if world() > 1 and run.deepspeed is None:
            raise InputError("Several processes train with DeepSpeed: give its configuration to --deepspeed.")
        for stage in stages:
            stage.check(world())
        ledger = Ledger.of(run.output, _settings(config, run, stages))
        barrier()
        judge = Validation(run.data, config.validation).figures
        if not ledger.done:
            with ledger.timed("before"):  # a model of its own, which any stage can go on from
                made = saved(loaded(run), replace(run, output=run.output / "stages" / "before"))
                ledger.done.append(_entry("before", _within(run, made), judge(loaded(run)), True))
        for stage in stages[len(ledger.done) - 1 :]:
            _take(stage, ledger, run, judge)
        with ledger.timed("card"):
            _compare(run, ledger, judge)
        if first:
            _finish(run, ledger, config)
        barrier()
        return _result(run, ledger)


def check(config: EquipConfig, run: Run, skip: Collection[str]) -> None:
    """Refuse what cannot be equipped, before anything is loaded.

    Raises:
        InputError: so it is.
    """
    check_apart(run.output, "--out", run.model, run.data)
    check_target(run.output)
    for split in ("train", "validation"):
        if not any((run.data / "pg19" / split).glob("*.txt")):
            folder = run.data / "pg19" / split
            raise InputError(
                f"There is no book in {folder}: give --data a folder that holds PG-19's as pg19."
            )
    if saved_model(run.model) is not None:
        raise InputError(f"{run.model} has a hierarchy already: give the backbone that it is made of.")
    names = [stage.name for stage in config.stages]
    for name in skip:
        if name not in names:
            raise InputError(f"There is no stage {name!r}: skip some of {', '.join(names)}.")


def _take(stage: Stage, ledger: Ledger, run: Run, judge: Judge) -> None:
    """Run a stage and note what it made."""
    own = replace(run, model=_kept(run, ledger), output=run.output / "stages" / stage.name)
    with ledger.timed(stage.name):
        made = stage.make(own, judge)
        figures = judge(loaded(replace(own, model=made)))
        kept = figures.mean <= ledger.kept["mean"] + stage.allowance
        ledger.done.append(_entry(stage.name, _within(run, made), figures, kept))


def _entry(name: str, model: str, figures: Figures, kept: bool) -> dict[str, Any]:
    """A line of the ledger."""
    return {"name": name, "model": model, **asdict(figures), "mean": figures.mean, "kept": kept}


def _within(run: Run, folder: str) -> str:
    """A folder as the ledger names it: from the run's own, which may be moved."""
    return str(Path(folder).relative_to(run.output))


def _kept(run: Run, ledger: Ledger) -> str:
    """The model of the last stage whose model was kept."""
    return str(run.output / ledger.kept["model"])


def _settings(config: EquipConfig, run: Run, stages: Sequence[Stage]) -> dict[str, Any]:
    """Settings that a run must not change on the way."""
    plain = [{"kind": type(stage).__name__, **asdict(stage)} for stage in stages]
    books = sorted(path.name for path in (run.data / "pg19").glob("*/*.txt"))
    settings = {
        "model": run.model,
        "books": digest(repr(books), {}),
        "dtype": run.dtype,
        "stages": plain,
        "validation": asdict(config.validation),
    }
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found


def _compare(run: Run, ledger: Ledger, judge: Judge) -> None:
    """Note validation figures of what a user would otherwise have, and of the model."""
    full = HierMemConfig.preset("full").without_shipped()
    configs = {
        "window": full.with_working(policy="window"),
        "attention": full,
        "full attention": HierMemConfig.preset("bare"),
        "equipped": None,
    }
    for name, config in configs.items():
        if name not in ledger.compared:
            ledger.compared[name] = asdict(judge(loaded(run if config else _of(run, ledger), config)))


def _of(run: Run, ledger: Ledger) -> Run:
    """The same with the model of the last stage that was kept."""
    return replace(run, model=_kept(run, ledger), deepspeed=None)


def _finish(run: Run, ledger: Ledger, config: EquipConfig) -> None:
    """Write the model with its card beside the stages."""
    loaded(_of(run, ledger)).save_pretrained(run.output)
    replaced(run.output / CARD, card_of(run.model, _result(run, ledger), config.validation))


def _result(run: Run, ledger: Ledger) -> dict[str, Any]:
    """The stages as the command shows them."""
    stages, before = [], ledger.done[0]["mean"]
    for entry in ledger.done[1:]:
        seconds = ledger.seconds[entry["name"]]
        figures = {"before": before, "after": entry["mean"], "kept": entry["kept"]}
        stages.append({"name": entry["name"], "seconds": seconds, **figures})
        before = entry["mean"] if entry["kept"] else before
    return {"out": str(run.output), "stages": stages, "figures": ledger.compared}


# ---- under a launcher


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry for the deepspeed launcher; `hiermem equip` is the same for one process."""
    parser = argparse.ArgumentParser(prog="hiermem.training.equip", description="Equip a backbone.")
    parser.add_argument("model", help="a backbone: hub id, folder, GGUF file or smollm2")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pg19")
    parser.add_argument("--out", type=Path, required=True, help="folder of the stages and the model")
    parser.add_argument("--size", default="small", choices=list(SIZES))
    parser.add_argument("--skip", action="append", default=[], help="a stage that is left out; repeatable")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed's configuration")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    run = Run(options.model, options.data, options.out, options.deepspeed, options.dtype)
    try:
        result = equip(SIZES[options.size](), run, options.skip)
    except HierMemError as error:
        sys.stderr.write(f"hiermem: {error}\n")
        end(2)
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stdout.write(json.dumps(result) + "\n")
    end(0)


if __name__ == "__main__":
    main()
