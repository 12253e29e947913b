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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hiermem.config import HierMemConfig
from hiermem.ending import end
from hiermem.errors import HierMemError, InputError
from hiermem.eval.result_log import check_apart
from hiermem.loading import saved_model
from hiermem.lora import add_lora, has_lora
from hiermem.memory.saved import plain_settings
from hiermem.model import HierMemModel
from hiermem.saving import check_target
from hiermem.training.checkpoints import (
    begin,
    damaged,
    finish,
    newest,
    place,
    read_state,
    run_lock,
    write_state,
)
from hiermem.training.distillation import HeadObjective, replace_recent
from hiermem.training.distributed import all_reduce_sum, barrier, one_of_many, rank, world
from hiermem.training.engine import Engine, declare, declared, new_engine
from hiermem.training.fit_recall import fit_recall
from hiermem.training.head_selection import keep_best_heads
from hiermem.training.log import log
from hiermem.training.objective import LanguageObjective, TrainingObjective
from hiermem.training.recipes import TRAININGS, TrainConfig
from hiermem.training.retrieval_pairs import RetrievalPairs
from hiermem.training.samples import TrainingDataset, check_samples, questions
from hiermem.training.search_key import RecallObjective

CHECKPOINT = "step"
FITTED = "fitted.safetensors"
Dataset = TrainingDataset | RetrievalPairs
"""Draws batches by the numbers of what is in them."""


@dataclass(frozen=True)
class Run:
    """Where a training reads and writes.

    Attributes:
        model: a backbone, or a folder of an earlier training that this one goes on from.
        data: folder that holds `pg19` and `pubmedqa`.
        output: folder of checkpoints, logs and, at the end, the trained model.
        deepspeed: DeepSpeed's configuration; None trains in this process alone.
        dtype, device: of the backbone.
    """

    model: str
    data: Path
    output: Path
    deepspeed: Path | None = None
    dtype: str | None = None
    device: str | None = None


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

    _check(config, run)
    with one_of_many(always=run.deepspeed is not None) as first, run_lock(run.output, writes=first):
        config.optimizer.rounds(world())
        model = prepared(config, run)
        learner, samples, held_out = _parts(config, run, model)
        settings = _settings(config, model)
        engine = new_engine(learner, config.optimizer, run.deepspeed)
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
                bar.set_postfix_str(_words(entry))
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


def _check(config: TrainConfig, run: Run) -> None:
    """Refuse folders that lack what is needed, or are not to be written to, before anything is loaded."""
    check_apart(run.output, "--out", run.model, run.data)
    check_target(run.output)
    if config.pairs is None:
        check_samples(run.data, config.samples)
    else:
        questions(run.data, config.pairs.held_out)


def _parts(config: TrainConfig, run: Run, model: HierMemModel) -> tuple[TrainingObjective, Dataset, Dataset]:
    """What is trained, what it is trained on, and what is held out."""
    tokenizer, data = model.tokenizer, run.data
    if config.pairs is not None:
        pairs = RetrievalPairs(tokenizer, data, config.pairs, model.config.longterm)
        return RecallObjective(model, pairs), pairs, pairs.of_held_out()
    samples = TrainingDataset(tokenizer, data, config.samples)
    if config.fitted and (saved_model(run.model) is None or "prompt" not in config.trains):
        _fit(model, samples, config.fitted, run.output)
    pieces = TrainingDataset(tokenizer, data, config.held_out, split="validation")
    learner = HeadObjective(model) if config.replacement else LanguageObjective(model, config.objective)
    return learner, samples, pieces


def _fit(model: HierMemModel, samples: TrainingDataset, count: int, folder: Path) -> None:
    """Fit recall before the first step; a training that goes on takes what it began with."""
    path = folder / FITTED
    if newest(folder, CHECKPOINT)[0] is not None:
        try:
            model.load_memory_parameters(load_file(path))
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from error
        return
    fit_recall(model, samples, count)
    if rank() == 0:
        temporary = path.with_suffix(".tmp")
        save_file(model.memory_parameters(), temporary)
        temporary.replace(path)


def prepared(config: TrainConfig, run: Run) -> HierMemModel:
    """The model of a recipe, of which only what is declared asks for gradients.

    Raises:
        InputError: the recipe cannot go on from this model.
    """
    model = HierMemModel.from_pretrained(
        run.model, config=_model_settings(config, run), dtype=run.dtype, device=run.device
    )
    if config.lora.rank and not has_lora(model.backbone):
        torch.manual_seed(config.samples.seed)
        add_lora(model.backbone, config.lora)
    if config.replacement is not None:
        samples = TrainingDataset(model.tokenizer, run.data, config.samples)
        replace_recent(model, samples, config.replacement)
    if config.choice is not None:
        keep_best_heads(model, TrainingDataset(model.tokenizer, run.data, config.samples), config.choice)
    declare(model, config.declared)
    return model.eval()


def _model_settings(config: TrainConfig, run: Run) -> HierMemConfig:
    folder = saved_model(run.model)
    saved = None if folder is None else HierMemConfig.from_saved(folder)
    if "mamba" in config.trains and config.replacement is None and not (saved and saved.mamba.groups):
        raise InputError(f"{run.model} has no Mamba heads: give --model what the recipe heads made.")
    if saved is None:
        return config.model()
    if config.replacement is not None and saved.mamba.groups:
        raise InputError(
            f"{run.model} has Mamba heads already: go on with heads-logits, or begin with a model without."
        )
    if not config.keeps_settings:
        return config.model()
    if config.fitted and not (saved.summary.tokens and saved.summary.residual):
        raise InputError(f"Recall is fitted of a residual memory, which {run.model} does not have.")
    if config.pairs is None:
        return saved
    if saved.summary.query == "half":
        raise InputError(
            f"The recipe teaches the summary prompt, by which segments of {run.model} recall: it needs a "
            f"model whose query is previous."
        )
    searching = replace(saved.summary, search=config.model().summary.search)
    return HierMemConfig(**{**saved.settings(), "summary": searching})


def _step(engine: Engine, samples: Dataset, config: TrainConfig, step: int) -> dict[str, Any]:
    """One optimizer step; which samples it takes depends on its number alone, not on who computes them."""
    settings = config.optimizer
    own = range(step * settings.batch, (step + 1) * settings.batch)[rank() :: world()]
    batches = [
        samples.batch(own[at : at + settings.micro]).to(engine.device)
        for at in range(0, len(own), settings.micro)
    ]
    factor = config.factor(step)
    loss, norm = engine.step(batches, factor)
    return {"step": step + 1, "loss": loss, "norm": norm, "rate": settings.memory_rate * factor}


@torch.no_grad()
def _evaluated(engine: Engine, samples: Dataset, config: TrainConfig) -> float:
    """Mean loss of held-out samples (`Losses.language`), each process its share of them."""
    engine.learner.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for first in range(0, config.evaluated, world()):
        number, wanted = first + rank(), first + rank() < config.evaluated
        batch = samples.batch([number if wanted else 0])  # the others only keep ZeRO's processes in step
        nll = float(engine.losses(batch.to(engine.device)).language)
        sums += torch.tensor([nll, 1.0], dtype=torch.float64) * wanted
    engine.learner.train()
    total, count = all_reduce_sum(sums).tolist()
    return total / count


# ---- checkpoints and the trained model


def _settings(config: TrainConfig, model: HierMemModel) -> dict[str, Any]:
    """What a run must not change on the way; how long it is to be, and how much is computed at once, may."""
    known = model.fingerprint()
    recipe = {name: value for name, value in asdict(config).items() if name not in ("steps", "save_every")}
    recipe["optimizer"] = {name: value for name, value in recipe["optimizer"].items() if name != "micro"}
    recipe["mamba"] = asdict(model.mamba.config)
    recipe["summary"] = None if config.summary is None else plain_settings(config.summary)
    return {**recipe, **{name: known[name] for name in ("backbone", "tokenizer", "dtype")}}


def _keep(engine: Engine, settings: dict[str, Any], folder: Path, history: list[dict[str, Any]]) -> None:
    """Write a checkpoint: everybody its part, the first process the marker, once all are done."""
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
    """History up to the newest complete checkpoint, which is taken over, and what was passed over."""
    path, skipped = newest(folder, CHECKPOINT)
    if path is None:
        return [], skipped
    known = read_state(path, settings)
    if known["world"] != world():
        raise InputError(
            f"{folder} is of a training on {known['world']} processes: go on with as many, or give another "
            f"folder."
        )
    engine.load(path)
    return known["history"], skipped


def _export(engine: Engine, folder: Path) -> None:
    """Write the trained model beside the checkpoints.

    Raises:
        RuntimeError: a tensor is empty.
    """
    with engine.gathered():
        if rank() == 0:
            model = engine.learner.model
            tensors = {**declared(engine.learner), **model.memory_parameters()}
            empty = [name for name, tensor in tensors.items() if not tensor.numel()]
            if empty:
                raise RuntimeError(f"{', '.join(empty)} would be saved empty")
            model.save_pretrained(folder)
    barrier()


def _words(entry: dict[str, Any]) -> str:
    words = f"loss {entry['loss']:.4f}"
    return words + (f", held out {entry['held_out']:.4f}" if "held_out" in entry else "")


# ---- under a launcher


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The entry for the deepspeed launcher; `hiermem train` is the same for one process."""
    parser = argparse.ArgumentParser(
        prog="hiermem.training.finetune", description="Train what hiermem learns."
    )
    parser.add_argument("--recipe", default="smoke", choices=list(TRAININGS))
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pg19 and pubmedqa")
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
    given = parser.parse_args(arguments)
    run = Run(given.model, given.data, given.output, given.deepspeed, given.dtype)
    try:
        config = TRAININGS[given.recipe]().with_steps(given.steps).with_batch(given.batch, given.micro)
        result = train(config.with_share(given.share), run)
    except HierMemError as error:
        sys.stderr.write(f"hiermem: {error}\n")
        end(2)
    if int(os.environ.get("RANK", "0")) == 0:  # the processes have parted
        result.pop("history")
        sys.stdout.write(json.dumps(result) + "\n")
    end(0)


if __name__ == "__main__":
    main()
