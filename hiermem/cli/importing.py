"""`hiermem import`: checkpoints of other codes."""

from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError

app = typer.Typer(help="Take over checkpoints of other codes.", no_args_is_help=True)


@app.command()
def namm(
    checkpoint: Annotated[Path, typer.Argument(help="File ckpt.pt or iter_N.pt of NAMM's public code.")],
    out: Annotated[Path, typer.Option(help="Folder to write the evictor into.")],
    json: opt.Json = False,
) -> None:
    """Make an evictor of a network that NAMM's public code has evolved (arXiv 2410.13166).

    The network is the mean of the evolution, by which that code evaluates, with its statistics of features.

    Examples:

        hiermem import namm ckpt.pt --out evictor

        hiermem read book.txt --preset namm --evictor evictor --out book.hmem
    """
    from hiermem.eviction_weights import FILE
    from hiermem.public_weights import namm_evictor

    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to --out.")
    evictor = namm_evictor(checkpoint)
    evictor.save(out)
    learned = {n: t for n, t in (evictor.network or {}).items() if n not in ("mean", "deviation")}
    count = sum(tensor.numel() for tensor in learned.values())
    result = {"out": str(out), "parameters": count, "iteration": evictor.origin.get("iteration")}
    opt.emit(result, json, f"Wrote {out / FILE}: a network of {count:,} parameters, the evolution's mean.")


@app.command()
def hmt(
    checkpoint: Annotated[Path, typer.Argument(help="File model_weights_N.pth of HMT's public code.")],
    model: Annotated[str, typer.Option(help="The backbone that it was trained with.")],
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    json: opt.Json = False,
) -> None:
    """Make a model of the memory that HMT's public code has trained (arXiv 2405.06067).

    The backbone's own weights in the file are not taken: the backbone is that of --model, and how many of its
    weights have other numbers in the file is said. Settings are those of the preset hmt.

    Examples:

        hiermem import hmt model_weights_500.pth --model some/model --out made

        hiermem read book.txt --model made --out book.hmem
    """
    from hiermem.loading import saved_model
    from hiermem.public_weights import HMTWeights
    from hiermem.saving import check_target

    if saved_model(model) is not None:
        raise InputError(f"{model} has a memory of its own: give the backbone below it to --model.")
    check_target(out)
    weights = HMTWeights.read(checkpoint)
    made = opt.load_model(model, weights.config(), None, "cpu")
    changed = weights.give(made)
    made.save_pretrained(out)
    h, width = weights.shape
    result = {
        "out": str(out),
        "recall_width": h,
        "embedding_width": width,
        "backbone_tensors": len(weights.backbone),
        "backbone_changed": len(changed),
        "left_aside": weights.unused,
    }
    words = f"The model is in {out}: prompts of {width} numbers, a recall attention {h} wide."
    aside = []
    if weights.backbone:
        other = f", {len(changed)} of them other than those of {model}" if changed else ""
        aside.append(f"{len(weights.backbone)} tensors of the backbone{other}")
    if weights.unused:
        aside.append(f"{', '.join(weights.unused)}, which plain reading does not use")
    words += f" Left aside: {'; '.join(aside)}." if aside else ""
    opt.emit(result, json, words)
