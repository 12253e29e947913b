"""`hiermem evolve` and `train`: evolution and gradient training of the memory."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError

Recipe = Annotated[
    str,
    typer.Option(
        help="smoke, hmt-1 or hmt-2 (after the two stages of HMT), isolated (a residual memory "
        "between segments without a cache), carried and recall (go on from it: around a carried cache; "
        "what recall finds by), questions (adapters for PubMedQA), key (the search key), states (search by "
        "the backbone's own states), kv (the prompt in front of recalled keys and values), heads, "
        "heads-chosen, heads-logits and heads-language (Mamba heads; each goes on from one before), memory "
        "(its prompt around a pruned cache; goes on) and together (prompt and Mamba heads; goes on)."
    ),
]
Micro = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples computed at once, a divisor of --batch; memory limits it; default: the recipe's.",
    ),
]
Share = Annotated[
    float | None,
    typer.Option(help="Of the KV groups that heads replaces or heads-chosen keeps so; default: 1/3."),
]


def evolve(
    data: opt.Trainable,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, logs and, all along, the evictor.")],
    recipe: Annotated[
        str,
        typer.Option(
            help="small (as shipped for smollm2), published-network (NAMM's, evolved our way) or smoke."
        ),
    ] = "small",
    model: opt.Model = "smollm2",
    generations: Annotated[
        int | None, typer.Option(min=1, help="Generations of every stage in place of the recipe's.")
    ] = None,
    seed: opt.Seed = 0,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Evolve what the memory keeps: head shares and NAMM's network, by CMA-ES on train data.

    Stopped at any moment, the same command goes on from the last complete generation. Under a launcher of
    torch.distributed every process judges a share of the prompts.

    Examples:

        hiermem evolve --data data --out runs/evictor --recipe smoke

        hiermem eval needles --data data/pg19 --policy namm --evictor runs/evictor --keep 0.25
    """
    from hiermem.eval.result_log import check_apart
    from hiermem.training.distributed import one_of_many
    from hiermem.training.evolve import evolve as run
    from hiermem.training.recipes import EVOLUTIONS

    if recipe == "published":
        raise InputError(
            "The recipe published is called published-network now: network and sizes are NAMM's, tasks and "
            "budget are not."
        )
    if recipe not in EVOLUTIONS:
        raise InputError(f"There is no recipe {recipe!r}: choose one of {', '.join(EVOLUTIONS)}.")
    _check_folders(data, out)
    check_apart(out, "--out", data, model)
    config = replace(EVOLUTIONS[recipe](), seed=seed)
    if generations is not None:
        stages = tuple(replace(stage, generations=generations) for stage in config.stages)
        config = replace(config, stages=stages)
    with one_of_many() as first:
        reader = opt.load_model(model, opt.configuration(model, "full", evictor="none"), dtype, device)
        result = run(reader, data, config, out)
    if first:
        words = (
            f"After {result['generation']} generations the fitness is {result['fitness']:.3f} with "
            f"{result['kept']:.3f} of the cache; the evictor is in {out}."
        )
        opt.emit(result, json, words)


def train(
    data: opt.Trainable,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, logs and the trained model.")],
    recipe: Recipe = "smoke",
    model: Annotated[
        str, typer.Option(help="A backbone, or the folder of an earlier training that this goes on from.")
    ] = "smollm2",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in place of the recipe's.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples of a step; default: the recipe's.")
    ] = None,
    micro: Micro = None,
    share: Share = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Train memory parameters and adapters; the backbone itself stays as it is.

    Stopped at any moment, the same command goes on from the last complete checkpoint. For many processes see
    docs/training.md: the same recipes under DeepSpeed's launcher.

    Examples:

        hiermem train --data data --out runs/smoke --recipe smoke

        hiermem train --data data --out runs/second --recipe hmt-2 --model runs/first

        hiermem train --data data --out runs/heads --recipe heads --batch 16 --micro 8  # on a GPU

        hiermem read book.txt --model runs/second --out book.hmem
    """
    from hiermem.eval.hub import is_name
    from hiermem.training.finetune import train as run
    from hiermem.training.preparation import Run
    from hiermem.training.recipes import TRAININGS

    if recipe not in TRAININGS:
        raise InputError(f"There is no recipe {recipe!r}: choose one of {', '.join(TRAININGS)}.")
    if not is_name(data):
        _check_folders(data, out)
    where = str(opt.check_numbers(dtype, device))
    config = TRAININGS[recipe]().changed(steps, batch, micro, share)
    result = run(config, Run(model, data, out, dtype=dtype, device=where))
    opt.emit(result, json, f"{_outcome(result)}; the model is in {out}.")


def _outcome(result: dict[str, Any]) -> str:
    """Loss and held-out loss of a training, in words."""
    if result["loss"] is None:
        return f"Fitted or chosen, nothing trained; the loss on what was held out is {result['held_out']:.4f}"
    return (
        f"After {result['step']} steps of {result['trained']:,} parameters the loss is "
        f"{result['loss']:.4f}, on what was held out {result['held_out']:.4f}"
    )


def _check_folders(data: Path, out: Path) -> None:
    """Refuse a path that is no folder before anything is loaded.

    Raises:
        InputError: so it is.
    """
    if not data.is_dir():
        raise InputError(f"There is no folder {data}: give --data one that holds the data of the recipe.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to --out.")
