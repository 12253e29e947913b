"""`hiermem eval TASK`: quality of any configuration on public tasks."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError

app = typer.Typer(help="Measure quality on public tasks.", no_args_is_help=True)

Split = Annotated[str, typer.Option(help="train, validation or test.")]


@app.command()
def pg19(
    data: opt.Data,
    split: Split = "test",
    book: Annotated[str | None, typer.Option(help="Id of one book; default: all.")] = None,
    start_token: Annotated[int, typer.Option(help="First token that is read.")] = 0,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens read of each book.")] = None,
    score_from: Annotated[int, typer.Option(help="Score only predictions made from this token on.")] = 0,
    model: opt.Model = "smollm2",
    policy: Annotated[
        str, typer.Option(help="window, attention, none, or full: plain full attention.")
    ] = "attention",
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    positions: opt.Positions = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    limit: opt.Limit = None,
    json: opt.Json = False,
) -> None:
    """Streaming perplexity over books: teacher-forced, each token scored once.

    Examples:

        hiermem eval pg19 --data pg19 --policy window --budget 512 --max-tokens 32768

        hiermem eval pg19 --data book.txt --policy full --max-tokens 8192 --json
    """
    from hiermem.eval.tasks import pg19 as task

    part = task.Slice(start_token, max_tokens, score_from)
    texts = task.books(data, split, book, limit)
    if policy == "full":
        if budget is not None or positions is not None:
            raise InputError("Full attention keeps everything in place: leave --budget and --positions out.")
        config = opt.configuration(model, "bare", chunk=chunk)
    else:
        config = opt.configuration(model, "full", policy, budget, chunk=chunk, positions=positions)
    reader = opt.load_model(model, config, dtype, device)
    start = time.perf_counter()
    result = task.evaluate(reader, texts, part)
    settings = {
        "split": split,
        "start_token": start_token,
        "max_tokens": max_tokens,
        "score_from": score_from,
    }
    _report("pg19", result, {**_settings(model, config), **settings, "policy": policy}, start, json)


@app.command()
def passkey(
    haystack: Annotated[Path, typer.Option(help="Text file that the sentence is hidden in.")],
    lengths: Annotated[
        str, typer.Option(help="Text lengths in tokens, comma-separated.")
    ] = "1024,8192,32768",
    limit: Annotated[int, typer.Option(help="Examples per length.")] = 20,
    seed: opt.Seed = 0,
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    segment: opt.Segment = None,
    chunk: opt.Chunk = None,
    top_k: opt.TopK = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Find a five-digit key in a long text: greedy answer, exact match.

    Example:

        hiermem eval passkey --haystack book.txt --lengths 1024,8192 --limit 20 --seed 1
    """
    from hiermem.eval.tasks import passkey as task

    try:
        wanted = [int(length) for length in lengths.split(",")]
    except ValueError as error:
        raise InputError(f"--lengths takes whole numbers with commas between, not {lengths!r}.") from error
    if limit < 1:
        raise InputError("--limit must be at least 1.")
    text = opt.read_document(str(haystack))
    config = opt.configuration(model, preset, policy, budget, segment, chunk, top_k=top_k)
    reader = opt.load_model(model, config, dtype, device)
    start = time.perf_counter()
    result = task.evaluate(reader, text, wanted, limit, seed)
    _report("passkey", result, {**_settings(model, config), "seed": seed}, start, json)


@app.command()
def retrieval(
    data: opt.Data,
    split: Split = "test",
    limit: opt.Limit = None,
    json: opt.Json = False,
) -> None:
    """Find each PubMedQA question's own abstract among all abstracts.

    Example:

        hiermem eval retrieval --data pubmedqa --split test --limit 300 --json
    """
    from hiermem.config import HierMemConfig
    from hiermem.eval.tasks import retrieval as task

    longterm = HierMemConfig.preset("full").longterm
    start = time.perf_counter()
    result = task.evaluate(data, split, limit, longterm)
    _report("retrieval", result, {"split": split, "longterm": asdict(longterm)}, start, json)


def _settings(model: str, config: Any) -> dict[str, Any]:
    settings = config.to_dict()
    return {"model": model, **{name: settings[name] for name in ("segment", "chunk", "working", "longterm")}}


def _report(task: str, result: dict[str, Any], config: dict[str, Any], start: float, as_json: bool) -> None:
    report = {"task": task, **result, "config": config, "seconds": time.perf_counter() - start}
    lines = [f"{name}: {value:.4g}" for name, value in result["metrics"].items()]
    for row in result.get("rows", []):
        lines.append(
            "  " + "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
        )
    lines.append(f"n = {result['n']}, {report['seconds']:.1f} s")
    opt.emit(report, as_json, "\n".join(lines))
