"""`hiermem bench`: what the memory costs, and whether it stays flat."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli import results
from hiermem.errors import InputError
from hiermem.progress import say

if TYPE_CHECKING:
    import torch

    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

app = typer.Typer(help="Measure speed and memory.", no_args_is_help=True)

Document = Annotated[
    str,
    typer.Option("--text", help="Text file to read, or python-reference.", callback=opt.checked_document),
]


@app.command()
def overhead(
    text: Document = "python-reference",
    model: opt.Model = "smollm2",
    budget: Annotated[int, typer.Option(help="Live tokens per KV head.")] = 512,
    chunk: Annotated[int, typer.Option(help="Tokens read at once.")] = 512,
    rounds: Annotated[int, typer.Option(help="Chunks timed for each system.")] = 20,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Reading speed of every policy against the bare backbone on the same chunks, interleaved; hiermem is the
    default, attention with the head shares that ship.

    Example:

        hiermem bench overhead --text book.txt --budget 512 --chunk 512
    """

    from hiermem.eval.overhead import measure
    from hiermem.eviction_weights import SHIPPED, resolve_eviction_weights
    from hiermem.memory.policies import AttentionPolicy

    if rounds < 1:
        raise InputError("--rounds must be at least 1.")
    config = opt.configuration(model, None, "namm", budget, chunk=chunk, evictor=evictor)
    reader, ids = _loaded(text, model, config, dtype, device)
    configs = {"window": reader.config.with_working(policy="window", head_shares=None)}
    configs["attention"] = reader.config.with_working(policy="attention", head_shares=None)
    configs["namm"] = reader.config
    shipped = resolve_eviction_weights(SHIPPED, model, AttentionPolicy.name)
    shares = None if shipped is None else shipped.shares
    configs["hiermem"] = configs["attention"].with_working(head_shares=shares)
    if len(ids) < 4 * (budget + chunk):
        raise InputError(f"The text has {len(ids)} tokens: give one of at least {4 * (budget + chunk)}.")
    rows = measure(reader, ids.unsqueeze(0), configs, rounds)
    words = "\n".join(
        f"{row['system']:>10}: {row['tokens_per_second']:7.0f} tokens/s, "
        f"{row['ratio_to_bare']:.2f} of the bare limit"
        for row in rows
    )
    opt.emit({"rows": rows}, json, words)


@app.command()
def length(
    text: Document = "python-reference",
    lengths: Annotated[
        str, typer.Option(help="Tokens to read, comma-separated; the text is repeated where it is shorter.")
    ] = "2048,8192,32768,131072,262144",
    systems: Annotated[
        str, typer.Option(help="Comma-separated: hiermem, full (transformers), bare limit.")
    ] = ",".join(("hiermem", "full", "bare limit")),
    repeats: Annotated[int, typer.Option(min=1, help="Runs of every point, interleaved; medians count.")] = 1,
    limit: Annotated[float, typer.Option(min=1, help="Seconds after which a point is given up.")] = 600,
    model: opt.Model = "smollm2",
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
    budget: Annotated[int, typer.Option(min=1, help="Live tokens per KV head.")] = 512,
    chunk: Annotated[int, typer.Option(min=1, help="Tokens read at once.")] = 512,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    out: opt.Out = None,
    json: opt.Json = False,
) -> None:
    """Reading speed, time to the first answer token, decoding speed and memory against length.

    Every point runs in a process of its own; a system that failed is not tried at greater lengths.

    Example:

        hiermem bench length --text book.txt --lengths 2048,8192,32768 --out speed.json
    """
    from hiermem.eval.result_log import ResultLog, data_hash
    from hiermem.eval.speed import Point, check_systems, sweep

    names, tokens = [name.strip() for name in systems.split(",")], opt.whole_numbers(lengths, "--lengths")
    check_systems(names)
    if min(tokens) < 2 * chunk:
        raise InputError(f"--lengths must be at least two chunks, which is {2 * chunk}.")
    config = opt.configuration(model, None, policy, budget, chunk=chunk, policy_set=policy_set)
    data, where = data_hash(opt.read_document(text)), opt.usable_device(device).type
    shared = {"text": text, "model": model, "policy": config.working.policy, "budget": budget}
    shared |= {"chunk": chunk, "limit": limit, "dtype": dtype, "device": device}
    points = [
        Point(name, count, _point_command({"system": name, "tokens": count, **shared}, policy_set or ()))
        for count in tokens
        for name in names
    ]
    settings = {"lengths": tokens, "systems": names, "repeats": repeats, **shared}
    settings |= {"text": Path(text).name, "data": data, "device": where}
    if config.working.policy_settings:
        settings["policy_settings"] = config.working.policy_settings

    def run(log: ResultLog) -> dict[str, Any]:
        return sweep(points, repeats, log)

    results.run("length", run, settings, out, json, _length_words)


def _point_command(options: dict[str, Any], policy_set: Sequence[str]) -> list[str]:
    """`bench point` with the options that have a value, in a process of its own."""
    command = [sys.executable, "-m", "hiermem.cli.main", "bench", "point"]
    for name, value in options.items():
        command += [] if value is None else [f"--{name}", str(value)]
    for setting in policy_set:
        command += ["--policy-set", setting]
    return command


def _length_words(report: dict[str, Any]) -> str:
    return "\n".join(map(_row_words, report["rows"]))


def _row_words(row: dict[str, Any]) -> str:
    begin = f"{row['system']:>10} {row['length']:>8} tokens: "
    if "failed" in row:
        return begin + row["failed"]
    words = f"{row['tokens_per_second']:7.0f} tokens/s, peak {row['peak_rss_bytes'] / 2**20:6.0f} MiB"
    if "first_token_seconds" in row:
        words += (
            f", first answer token {row['first_token_seconds']:.2f} s, "
            f"{row['decoded_tokens_per_second']:.1f} decoded/s, KV {row['kv_bytes'] / 2**20:.1f} MiB"
        )
    return begin + words


@app.command(hidden=True)
def point(
    system: Annotated[str, typer.Option(help="hiermem, full or bare limit.")],
    tokens: Annotated[int, typer.Option(help="Tokens to read.")],
    limit: Annotated[float, typer.Option(help="Seconds after which to give up.")],
    text: Document,
    model: opt.Model,
    policy: opt.Policy,
    budget: opt.Budget,
    chunk: opt.Chunk,
    policy_set: opt.PolicySet = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
) -> None:
    """Measure one point of `bench length` in this process."""

    from hiermem.eval.speed import measure

    config = opt.configuration(model, None, policy, budget, chunk=chunk, policy_set=policy_set)
    reader, ids = _loaded(text, model, config, dtype, device)
    ids = ids.repeat(-(-tokens // len(ids)))[:tokens]
    opt.emit(measure(reader, ids, system, limit), True, "")


@app.command()
def decode(
    text: Document = "python-reference",
    contexts: Annotated[str, typer.Option(help="Tokens to read before, comma-separated.")] = "512,2048,8192",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="How often, in turns.")] = 3,
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Decoding speed after texts of several lengths, beside the backbone with full attention.

    Where the model says again what it has read, or repeats itself, drafts copied from there take several
    tokens a pass; a row without them is shown, too. On a processor in float32, a row has the weights in
    float16; with torchao (extra quantize), one has them in int8; with llama-cpp-python, one has llama.cpp on
    a model's GGUF file.

    Example:

        hiermem bench decode --text book.txt --contexts 512,8192
    """
    import torch

    from hiermem.eval.decoding_speed import measure, with_drafts
    from hiermem.eval.llama_cpp_speed import available, llama_cpp
    from hiermem.loading import gguf_of

    lengths = opt.whole_numbers(contexts, "--contexts")
    config = opt.configuration(model, preset, policy, budget, chunk=chunk)
    reader, ids = _loaded(text, model, config, dtype, device)
    if not 2 <= min(lengths) <= max(lengths) <= len(ids):
        raise InputError(f"The text has {len(ids)} tokens: give --contexts of 2 to as many.")
    others = {}
    fewer = ["float16"] if reader.device.type == "cpu" and reader.dtype == torch.float32 else []
    for name in [*fewer, *(["int8"] if find_spec("torchao") is not None else [])]:
        try:
            others[f"hiermem-{name}"] = with_drafts(opt.load_model(model, config, dtype, device, name))
        except InputError as error:  # the other rows are worth knowing
            say(f"hiermem: no row in {name}. {error}")
    if (file := gguf_of(model)) is not None and available() and reader.device.type == "cpu":
        others["llama.cpp"] = llama_cpp(file, tokens)
    rows = measure(reader, ids, lengths, tokens, repeats, others)
    words = "\n".join(
        f"{row['system']:>25} after {row['context']:>6} tokens: {row['tokens_per_second']:6.1f} tokens/s"
        for row in rows
    )
    opt.emit({"rows": rows}, json, words)


@app.command()
def gpu(
    text: Document = "python-reference",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    evictor: opt.EvictorName | None = None,
    rounds: Annotated[int, typer.Option(min=1, help="Chunks that are timed.")] = 20,
    rows: Annotated[int, typer.Option(min=1, help="Texts of a batch.")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the text that are used.")] = 32768,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Reading speed and kernels a chunk: plain, compiled and as CUDA graphs, beside the bare backbone.

    Without a GPU, calls that would start a kernel are counted, and plain ways alone are measured.

    Examples:

        hiermem bench gpu --json

        hiermem bench gpu --device cpu --rows 1 --rounds 2 --tokens 8192
    """

    from hiermem.eval.gpu_speed import measure

    config = opt.configuration(model, preset, policy, budget, chunk=chunk, evictor=evictor)
    reader, ids = _loaded(text, model, config, dtype, device)
    ids = ids[:tokens]
    if len(ids) < (needed := 4 * (config.working.budget + config.chunk)):
        raise InputError(f"The text has {len(ids)} tokens: give one, and --tokens, of at least {needed}.")
    found = measure(reader, ids, rounds, rows)
    words = [
        f"{row['system']:>20}: {row['failed']}"
        if "failed" in row
        else f"{row['system']:>20}: {row['tokens_per_second']:8.0f} tokens/s, {row['kernels']} kernels"
        for row in found
    ]
    opt.emit({"rows": found}, json, "\n".join(words))


@app.command()
def flat(
    text: Document = "python-reference",
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
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

    from hiermem.eval.memory_growth import measure

    config = opt.configuration(model, preset, policy, budget, chunk=chunk, policy_set=policy_set)
    reader, ids = _loaded(text, model, config, dtype, device)
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


def _loaded(
    text: str, model: str, config: "HierMemConfig", dtype: str | None, device: str | None
) -> tuple["HierMemModel", "torch.Tensor"]:
    """The model, and a document's tokens for it, ``[n]`` int64."""
    import torch

    from hiermem.text import encode

    document = opt.read_document(text)
    loaded = opt.load_model(model, config, dtype, device)
    return loaded, torch.tensor(encode(loaded.tokenizer, document, begins=True))
