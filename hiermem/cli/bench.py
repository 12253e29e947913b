"""`hiermem bench`: what the memory costs, and whether it stays flat."""

from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError

app = typer.Typer(help="Measure speed and memory.", no_args_is_help=True)

Document = Annotated[str, typer.Option("--text", help="Text file to read, or python-reference.")]


@app.command()
def overhead(
    text: Document = "python-reference",
    model: opt.Model = "smollm2",
    budget: Annotated[int, typer.Option(help="Live tokens per KV head.")] = 512,
    chunk: Annotated[int, typer.Option(help="Tokens read at once.")] = 512,
    rounds: Annotated[int, typer.Option(help="Chunks timed for each system.")] = 20,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Reading speed of every policy against the bare backbone on the same chunks, interleaved.

    Example:

        hiermem bench overhead --text book.txt --budget 512 --chunk 512
    """
    from hiermem.eval.overhead import measure

    if rounds < 1:
        raise InputError("--rounds must be at least 1.")
    document = opt.read_document(text)
    configs = {
        policy: opt.configuration(model, "full", policy, budget, chunk=chunk)
        for policy in ("window", "attention")
    }
    reader = opt.load_model(model, None, dtype, device)
    ids = reader.tokenizer(document, return_tensors="pt", verbose=False).input_ids
    if ids.shape[1] < 4 * (budget + chunk):
        raise InputError(f"The text has {ids.shape[1]} tokens: give one of at least {4 * (budget + chunk)}.")
    rows = measure(reader, ids, configs, rounds)
    words = "\n".join(
        f"{row['system']:>10}: {row['tokens_per_second']:7.0f} tokens/s, "
        f"{row['ratio_to_bare']:.2f} of the bare limit"
        for row in rows
    )
    opt.emit({"rows": rows}, json, words)


@app.command()
def flat(
    text: Document = "python-reference",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    settle: Annotated[int, typer.Option(min=1, help="Growth is counted after so many tokens.")] = 16384,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Speed and resident memory along one long document, read to its end.

    Example:

        hiermem bench flat --text book.txt --policy window
    """
    import torch

    from hiermem.eval.flatness import measure

    document = opt.read_document(text)
    config = opt.configuration(model, preset, policy, budget, chunk=chunk)
    reader = opt.load_model(model, config, dtype, device)
    ids = torch.tensor(reader.tokenizer(document, verbose=False).input_ids)
    needed = max(2 * settle, 20 * config.chunk)
    if len(ids) < needed:
        raise InputError(f"The text has {len(ids)} tokens: give one of at least {needed}.")
    result = measure(reader, ids, settle)
    words = (
        f"{result['tokens']} tokens; speed by tenth "
        + " ".join(f"{speed:.0f}" for speed in result["tokens_per_second_by_tenth"])
        + f" tokens/s (last to second {result['last_tenth_to_second']:.2f}); resident memory grew by "
        f"{result['growth']:.1%} after the first {settle} tokens."
    )
    opt.emit(result, json, words)
