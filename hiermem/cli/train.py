"""`hiermem calibrate`, `heads`, `evolve` and `train`: what the memory learns about a backbone."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError


def calibrate(
    doc: opt.Document,
    out: Annotated[Path, typer.Option(help="Folder to write the evictor into.")],
    model: opt.Model = "smollm2",
    tokens: Annotated[
        int | None, typer.Option(help="Length of each piece of the text that is read twice.")
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Pieces that are read, for the mean.")] = None,
    kept: Annotated[
        float | None, typer.Option(help="Share of all tokens, those with the most attention.")
    ] = None,
    power: Annotated[float | None, typer.Option(help="Less than 1 evens the shares out.")] = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Measure how many tokens each KV head of a model should keep, without training.

    Reads pieces of a text twice and counts where the second reading looks. Takes a minute or two for a small
    model on two cores; any text of the kind you will read will do.

    Examples:

        hiermem calibrate book.txt --model HuggingFaceTB/SmolLM2-360M-Instruct --out evictor

        hiermem read book.txt --model HuggingFaceTB/SmolLM2-360M-Instruct --evictor evictor --out book.hmem
    """
    from hiermem.eval.result_log import check_apart
    from hiermem.eviction_weights import FILE, EvictionWeights
    from hiermem.text import encode
    from hiermem.training.calibration import CalibrationConfig
    from hiermem.training.calibration import calibrate as measure

    given: dict[str, Any] = {"tokens": tokens, "texts": texts, "kept": kept, "power": power}
    config = CalibrationConfig(**{name: value for name, value in given.items() if value is not None})
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to --out.")
    check_apart(out, "--out", model)
    text = opt.read_document(doc)
    reader = opt.load_model(model, None, dtype, device).reader
    ids = encode(reader.tokenizer, text)
    shares = measure(reader, ids, config)
    origin = {"made_by": "hiermem calibrate", "backbone": model, "text": Path(doc).name, **asdict(config)}
    EvictionWeights(shares=shares, origin=origin).save(out)
    flat = sorted(share for row in shares for share in row)
    middle, most = flat[len(flat) // 2], flat[-1]
    words = (
        f"Wrote {out / FILE}: of {len(flat)} KV heads the middle one keeps {middle:.2f} times the budget, "
        f"the longest memory is {most:.2f} times the budget."
    )
    opt.emit({"out": str(out), "shares": shares, "middle": middle, "most": most}, json, words)


def heads(
    text: Annotated[
        list[str],
        typer.Option(
            help="A UTF-8 text file, - or python-reference; given several times, ratios are means.",
            callback=opt.checked_documents,
        ),
    ],
    model: opt.Model = "smollm2",
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of all KV groups to choose; default: 1/3.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Or all groups with at least this ratio.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens read of each text.")] = 4096,
    window: Annotated[int, typer.Option(help="How many tokens are near, the query's own included.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="Draw layers by heads into this PNG.")] = None,
    dtype: opt.Dtype = "float32",
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Measure which heads look only near, and choose the KV groups that need no cache (RecurFormer).

    Examples:

        hiermem heads --text book.txt --share 0.33 --plot heads.png

        hiermem heads --text book.txt --text other.txt --threshold 0.9 --json
    """
    from hiermem.eval.plots import PNG, new_figure
    from hiermem.eval.result_log import writable
    from hiermem.text import encode
    from hiermem.training.recency import RecencyConfig, choose, heat_map, mean, overlap, recency_ratios

    config = RecencyConfig(tokens=tokens, window=window)
    if share is not None and threshold is not None:
        raise InputError("--share and --threshold both choose groups: give one of them.")
    share = 1 / 3 if share is None and threshold is None else share
    documents = [opt.read_document(name) for name in text]
    if plot is not None:
        if plot.suffix.lower() != ".png":
            raise InputError(f"--plot draws a PNG: give a name that ends in .png, not {str(plot)!r}.")
        writable(plot, "--plot", PNG)
        new_figure()  # before anything is measured
    reader = opt.load_model(model, None, dtype, device).reader
    encoded = [encode(reader.tokenizer, document) for document in documents]
    measured = [recency_ratios(reader, ids, config) for ids in encoded]
    ratios = mean(measured)
    selected = choose(ratios.of_groups, share, threshold)
    alone = [choose(one.of_groups, share, threshold) for one in measured]
    if plot is not None:
        heat_map(ratios, selected, plot)
    least = min(overlap(one, other) for one in alone for other in alone)
    result = {
        "ratios": ratios.without_sinks.tolist(),
        "ratios_with_sinks": ratios.all.tolist(),
        "selected": selected,
        "overlap": least,
        "window": window,
    }
    names = ", ".join(f"{layer}.{group}" for layer, group in selected)
    words = f"{len(selected)} of {ratios.of_groups.numel()} KV groups look only near: {names} (layer.group)."
    words += f" The texts agree on {least:.2f} of them." if len(text) > 1 else ""
    opt.emit(result, json, words)


def evolve(
    data: opt.Trainable,
    out: Annotated[Path, typer.Option(help="Folder of checkpoints, logs and, all along, the evictor.")],
    recipe: Annotated[
        str, typer.Option(help="small (as shipped for smollm2), published or smoke.")
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
    recipe: Annotated[
        str,
        typer.Option(
            help="smoke, hmt-1 or hmt-2 (the two stages of HMT as published), isolated (a neutral memory "
            "between segments without a cache), carried and recall (go on from it: around a carried cache; "
            "what recall finds by), questions (adapters for PubMedQA), key (the search key), heads, "
            "heads-chosen, heads-logits and heads-language (Mamba heads; each goes on from one before)."
        ),
    ] = "smoke",
    model: Annotated[
        str, typer.Option(help="A backbone, or the folder of an earlier training that this goes on from.")
    ] = "smollm2",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps in place of the recipe's.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples of a step; default: the recipe's.")
    ] = None,
    micro: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Samples computed at once, a divisor of --batch; memory limits it; default: the recipe's.",
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Of the KV groups that heads replaces or heads-chosen keeps so; default: 1/3."),
    ] = None,
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
    from hiermem.training.finetune import Run
    from hiermem.training.finetune import train as run
    from hiermem.training.recipes import TRAININGS

    if recipe not in TRAININGS:
        raise InputError(f"There is no recipe {recipe!r}: choose one of {', '.join(TRAININGS)}.")
    if not is_name(data):
        _check_folders(data, out)
    where = str(opt.check_numbers(dtype, device))
    config = TRAININGS[recipe]().with_steps(steps).with_batch(batch, micro).with_share(share)
    result = run(config, Run(model, data, out, dtype=dtype, device=where))
    if result["loss"] is None:
        words = (
            f"Fitted or chosen, nothing trained; the loss on what was held out is {result['held_out']:.4f}"
        )
    else:
        words = (
            f"After {result['step']} steps of {result['trained']:,} parameters the loss is "
            f"{result['loss']:.4f}, on what was held out {result['held_out']:.4f}"
        )
    words += f"; the model is in {out}."
    opt.emit(result, json, words)


def _check_folders(data: Path, out: Path) -> None:
    """Refuse early what is no folder.

    Raises:
        InputError: so it is.
    """
    if not data.is_dir():
        raise InputError(f"There is no folder {data}: give --data one that holds pg19 and pubmedqa.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to --out.")
