"""`hiermem train`: gradient training of memory parameters and adapters, on one process or many.

    deepspeed --num_accelerators 2 --module hiermem.training.finetune \\
        --recipe smoke --deepspeed ds_config.json --data data --output runs/smoke

Nothing in a step is random: samples are functions of seed and number, and there is no dropout. So a run that
was stopped goes on from its newest complete checkpoint as if it had not been.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch

from hiermem.ending import end
from hiermem.errors import HierMemError, InputError
from hiermem.memory.saved import plain_settings
from hiermem.model import HierMemModel
from hiermem.training.checkpoints import begin, finish, newest, place, read_state, run_lock, write_state
from hiermem.training.config import TrainConfig
from hiermem.training.distributed import all_reduce_sum, barrier, one_of_many, rank, world
from hiermem.training.engine import Engine, new_engine
from hiermem.training.log import log
from hiermem.training.parameters import trainable_parameters
from hiermem.training.preparation import (
    CHECKPOINT,
    Dataset,
    Run,
    check_folders,
    objective_and_data,
    prepared_model,
)
from hiermem.training.recipes import TRAININGS


def train(config: TrainConfig, run: Run) -> dict[str, Any]:
    """Train, or go on where an earlier run in ``run.output`` stopped, and write the model there.

    Returns:
        step, loss (None without steps), held-out loss, checkpoint, history; the same in all processes.

    Raises:
        InputError: data are missing, the folder is of a training with other settings, or another process
            trains into it.
        NonFiniteError: a loss was not finite; the newest checkpoint is from before.
    """
    from tqdm.auto import tqdm

    check_folders(config, run)
    with one_of_many(always=run.deepspeed is not None) as first, run_lock(run.output, writes=first):
        config.optimizer.rounds(world())
        model = prepared_model(config, run)
        objective, samples, held_out = objective_and_data(config, run, model)
        settings = _settings(config, model)
        engine = new_engine(objective, config.optimizer, run.deepspeed)
        history, skipped = _resume(engine, settings, run.output)
        bar = tqdm(total=config.steps, initial=len(history), desc="training", disable=None if first else True)
        with bar, log(run.output, writes=first) as note:
            while len(history) < config.steps:
                step = len(history)
                if step == 0:
                    note(0, {"step": 0, "held_out": _evaluated(engine, held_out, config)})
                entry = _step(engine, samples, config, step)
                if (step + 1) % config.evaluate_every == 0 or step + 1 == config.steps:
                    entry["held_out"] = _evaluated(engine, held_out, config)
                history.append(entry)
                note(step + 1, entry)
                bar.update()
                bar.set_postfix_str(_postfix(entry))
                if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                    _keep(engine, settings, run.output, history)
        _export(engine, run.output)
        last = history[-1] if history else {"step": 0, "held_out": _evaluated(engine, held_out, config)}
        return {
            "step": last["step"],
            "loss": last.get("loss"),
            "held_out": last.get("held_out"),
            "checkpoint": str(run.output),
            "trained": engine.trained,
            "skipped": skipped,
            "history": history,
        }


def _step(engine: Engine, samples: Dataset, config: TrainConfig, step: int) -> dict[str, Any]:
    """One optimizer step; which samples it takes depends on its number alone, not on who computes them."""
    settings = config.optimizer
    numbers = range(step * settings.batch, (step + 1) * settings.batch)[rank() :: world()]
    batches = [
        samples.batch(numbers[start : start + settings.micro]).to(engine.device)
        for start in range(0, len(numbers), settings.micro)
    ]
    factor = config.factor(step)
    loss, norm = engine.step(batches, factor)
    return {"step": step + 1, "loss": loss, "norm": norm, "rate": settings.memory_rate * factor}


@torch.no_grad()
def _evaluated(engine: Engine, samples: Dataset, config: TrainConfig) -> float:
    """Mean loss of held-out samples (`Losses.language`), each process its share of them."""
    engine.objective.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for first in range(0, config.evaluated, world()):
        number, counts = first + rank(), first + rank() < config.evaluated
        # All processes compute, also those without a sample: ZeRO-3 gathers parameters from all of them.
        batch = samples.batch([number if counts else 0])
        nll = float(engine.losses(batch.to(engine.device)).language)
        sums += torch.tensor([nll, 1.0], dtype=torch.float64) * counts
    engine.objective.train()
    total, count = all_reduce_sum(sums).tolist()
    return total / count


# ---- checkpoints and the trained model


def _settings(config: TrainConfig, model: HierMemModel) -> dict[str, Any]:
    """Settings that a run must not change on the way.

    How many steps it has, and how much is computed at once, it may.
    """
    fingerprint = model.fingerprint()
    recipe = {name: value for name, value in asdict(config).items() if name not in ("steps", "save_every")}
    recipe["optimizer"] = {name: value for name, value in recipe["optimizer"].items() if name != "micro"}
    recipe["mamba"] = asdict(model.mamba.config)
    recipe["summary"] = None if config.summary is None else plain_settings(config.summary)
    return {**recipe, **{name: fingerprint[name] for name in ("backbone", "tokenizer", "dtype")}}


def _keep(engine: Engine, settings: dict[str, Any], folder: Path, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint: each process its part, the first one the marker, once all are done."""
    path = place(folder, CHECKPOINT, history[-1]["step"])
    if rank() == 0:
        begin(path)
    barrier()
    engine.save(path)
    if rank() == 0:
        write_state(path, settings, world=world(), history=history)
    barrier()
    if rank() == 0:
        finish(path)
    barrier()


def _resume(engine: Engine, settings: dict[str, Any], folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Take over the newest complete checkpoint; its history, and the names of incomplete newer ones."""
    path, skipped = newest(folder, CHECKPOINT)
    if path is None:
        return [], skipped
    state = read_state(path, settings)
    if state["world"] != world():
        raise InputError(
            f"{folder} is of a training on {state['world']} processes: go on with as many, or give another "
            f"folder."
        )
    engine.load(path)
    return state["history"], skipped


def _export(engine: Engine, folder: Path) -> None:
    """Write the trained model beside the checkpoints.

    Raises:
        RuntimeError: a tensor is empty.
    """
    with engine.gathered():
        if rank() == 0:
            model = engine.objective.model
            tensors = {**trainable_parameters(engine.objective), **model.memory_parameters()}
            empty = [name for name, tensor in tensors.items() if not tensor.numel()]
            if empty:
                raise RuntimeError(f"{', '.join(empty)} would be saved empty")
            model.save_pretrained(folder)
    barrier()


def _postfix(entry: dict[str, Any]) -> str:
    loss = f"loss {entry['loss']:.4f}"
    return loss + (f", held out {entry['held_out']:.4f}" if "held_out" in entry else "")


# ---- under a launcher


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry for the deepspeed launcher; `hiermem train` is the same for one process."""
    parser = argparse.ArgumentParser(
        prog="hiermem.training.finetune", description="Train what hiermem learns."
    )
    parser.add_argument("--recipe", default="smoke", choices=list(TRAININGS))
    parser.add_argument("--data", type=Path, required=True, help="folder with the data of the recipe")
    parser.add_argument("--output", type=Path, required=True, help="checkpoints, logs and the trained model")
    parser.add_argument("--deepspeed", type=Path, help="DeepSpeed's configuration")
    parser.add_argument("--model", default="smollm2", help="a backbone, or a folder of an earlier training")
    parser.add_argument("--steps", type=int, help="in place of the recipe's")
    parser.add_argument(
        "--batch", type=int, help="samples of a step over all processes; default: the recipe's"
    )
    parser.add_argument(
        "--micro", type=int, help="samples that a process computes at once; default: the recipe's"
    )
    parser.add_argument(
        "--share", type=float, help="of the KV groups that heads replaces or heads-chosen leaves so"
    )
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    run = Run(options.model, options.data, options.output, options.deepspeed, options.dtype)
    try:
        config = TRAININGS[options.recipe]().changed(
            options.steps, options.batch, options.micro, options.share
        )
        result = train(config, run)
    except HierMemError as error:
        sys.stderr.write(f"hiermem: {error}\n")
        end(2)
    if int(os.environ.get("RANK", "0")) == 0:  # the processes have parted
        result.pop("history")
        sys.stdout.write(json.dumps(result) + "\n")
    end(0)


if __name__ == "__main__":
    main()
