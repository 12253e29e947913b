"""`hiermem equip`: the whole hierarchy for a backbone."""

from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError


def equip(
    model: Annotated[str, typer.Argument(help="A backbone: hub id, folder, GGUF file, or smollm2.")],
    data: Annotated[Path, typer.Option(help="Folder with pg19 in its official layout.")],
    out: Annotated[Path, typer.Option(help="Folder of all stages and, at the end, of the model.")],
    size: Annotated[
        str, typer.Option(help="tiny (minutes), small (hours on two cores) or full (days on eight GPUs).")
    ] = "small",
    skip: Annotated[
        list[str] | None,
        typer.Option(help="A stage that is left out: budgets, evolution, memory or heads; repeatable."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what every stage would do; nothing is loaded or written.")
    ] = False,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Give a backbone the whole hierarchy: head shares, eviction, memory embeddings and Mamba heads.

    Every stage is judged on validation books and left out where it makes them worse; Mamba heads may cost a
    little, for the cache that they save. Stopped at any moment, the same command goes on within its stage.
    For many processes see docs/training.md.

    Examples:

        hiermem equip Qwen/Qwen2.5-0.5B-Instruct --data data --out runs/equipped

        hiermem equip smollm2 --data data --out runs/first --size tiny

        hiermem equip smollm2 --data data --out runs/first --skip evolution --dry-run

        hiermem read book.txt --model runs/equipped --out book.hmem
    """
    from hiermem.training.equip import check
    from hiermem.training.equip import equip as run
    from hiermem.training.equip_sizes import SIZES
    from hiermem.training.preparation import Run

    if size not in SIZES:
        raise InputError(f"There is no size {size!r}: choose one of {', '.join(SIZES)}.")
    config, where = SIZES[size](), str(opt.check_numbers(dtype, device))
    whole = Run(model, data, out, dtype=dtype, device=where)
    check(config, whole, skip or [])
    if dry_run:
        lines = [line for stage in config.stages if stage.name not in (skip or []) for line in stage.work()]
        opt.emit({"work": lines}, json, "\n".join(lines))
        return
    result = run(config, whole, skip or [])
    rows = (
        f"  {stage['name']}: {stage['before']:.4f} to {stage['after']:.4f} nats in {stage['seconds']:.0f} s"
        + ("" if stage["kept"] else ", left out")
        for stage in result["stages"]
    )
    opt.emit(result, json, "\n".join([f"The model is in {out}. Stages:", *rows]))
