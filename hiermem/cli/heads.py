"""`hiermem calibrate` and `heads`: how much cache each attention head needs, measured without training."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError

if TYPE_CHECKING:
    from hiermem.reader import Reader
    from hiermem.training.recency import Ratios, RecencyConfig

Share = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Share of all KV groups to choose; default: 1/3.")
]
Threshold = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Or all groups with at least this ratio.")
]
Texts = Annotated[
    list[str],
    typer.Option(
        help="A UTF-8 text file, - or python-reference; given several times, ratios are means.",
        callback=opt.checked_documents,
    ),
]
Kept = Annotated[float | None, typer.Option(help="Share of all tokens, those with the most attention.")]


def calibrate(
    doc: opt.Document,
    out: Annotated[Path, typer.Option(help="Folder to write the evictor into.")],
    model: opt.Model = "smollm2",
    tokens: Annotated[
        int | None, typer.Option(help="Length of each piece of the text that is read twice.")
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Pieces that are read, for the mean.")] = None,
    kept: Kept = None,
    power: Annotated[float | None, typer.Option(help="Less than 1 evens the shares out.")] = None,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Measure how many tokens each KV head of a model should keep, and which, without training.

    Reads pieces of a text twice and takes what the second reading attends to: head shares for every policy,
    and weights of the policy `linear`. Takes some minutes for a small model on two cores; any text of the
    kind you will read will do.

    Examples:

        hiermem calibrate book.txt --model HuggingFaceTB/SmolLM2-360M-Instruct --out evictor

        hiermem read book.txt --model HuggingFaceTB/SmolLM2-360M-Instruct --policy linear --evictor evictor
            --out book.hmem
    """
    from hiermem.eval.result_log import check_apart
    from hiermem.eviction_weights import FILE, EvictionWeights
    from hiermem.text import encode
    from hiermem.training.calibration import CalibrationConfig
    from hiermem.training.calibration import calibrate as measure

    options: dict[str, Any] = {"tokens": tokens, "texts": texts, "kept": kept, "power": power}
    config = CalibrationConfig(**{name: value for name, value in options.items() if value is not None})
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: give a folder to --out.")
    check_apart(out, "--out", model)
    text = opt.read_document(doc)
    reader = opt.load_model(model, None, dtype, device).reader
    ids = encode(reader.tokenizer, text)
    found = measure(reader, ids, config)
    shares = found.shares
    origin = {"made_by": "hiermem calibrate", "backbone": model, "text": Path(doc).name, **asdict(config)}
    EvictionWeights(shares=shares, origin=origin, linear=found.linear).save(out)
    flat = sorted(share for row in shares for share in row)
    middle, most = flat[len(flat) // 2], flat[-1]
    words = (
        f"Wrote {out / FILE}: of {len(flat)} KV heads the middle one keeps {middle:.2f} times the budget, "
        f"the longest memory is {most:.2f} times the budget."
    )
    opt.emit({"out": str(out), "shares": shares, "middle": middle, "most": most}, json, words)


def heads(
    text: Texts,
    model: opt.Model = "smollm2",
    share: Share = None,
    threshold: Threshold = None,
    tokens: Annotated[int, typer.Option(help="Tokens read of each text.")] = 4096,
    window: Annotated[int, typer.Option(help="How many tokens are near, the query's own included.")] = 64,
    plot: Annotated[Path | None, typer.Option(help="Draw layers by heads into this PNG.")] = None,
    dtype: opt.Dtype = "float32",
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Measure which heads attend to near tokens alone, and choose KV groups that need no cache (RecurFormer).

    Examples:

        hiermem heads --text book.txt --share 0.33 --plot heads.png

        hiermem heads --text book.txt --text other.txt --threshold 0.9 --json
    """
    from hiermem.training.recency import RecencyConfig, heat_map

    config = RecencyConfig(tokens=tokens, window=window)
    if share is not None and threshold is not None:
        raise InputError("--share and --threshold both choose groups: give one of them.")
    share = 1 / 3 if share is None and threshold is None else share
    documents = [opt.read_document(name) for name in text]
    if plot is not None:
        _check_plot(plot)
    reader = opt.load_model(model, None, dtype, device).reader
    ratios, selected, agreement = _chosen(reader, documents, config, share, threshold)
    if plot is not None:
        heat_map(ratios, selected, plot)
    result = {
        "ratios": ratios.without_sinks.tolist(),
        "ratios_with_sinks": ratios.all.tolist(),
        "selected": selected,
        "overlap": agreement,
        "window": window,
    }
    names = ", ".join(f"{layer}.{group}" for layer, group in selected)
    count = f"{len(selected)} of {ratios.of_groups.numel()} KV groups"
    words = f"{count} attend to near tokens alone: {names} (layer.group)."
    words += f" The texts agree on {agreement:.2f} of them." if len(text) > 1 else ""
    opt.emit(result, json, words)


def _check_plot(path: Path) -> None:
    """Refuse a picture that cannot be drawn before anything is measured.

    Raises:
        InputError: so it is.
    """
    from hiermem.eval.plots import PNG, new_figure
    from hiermem.eval.result_log import writable

    if path.suffix.lower() != ".png":
        raise InputError(f"--plot draws a PNG: give a name that ends in .png, not {str(path)!r}.")
    writable(path, "--plot", PNG)
    new_figure()


def _chosen(
    reader: "Reader",
    documents: Sequence[str],
    config: "RecencyConfig",
    share: float | None,
    threshold: float | None,
) -> tuple["Ratios", list[list[int]], float]:
    """Mean ratios over documents, the groups chosen by them, and the least agreement of two documents."""
    from hiermem.text import encode
    from hiermem.training.recency import choose, mean, overlap, recency_ratios

    measured = [recency_ratios(reader, encode(reader.tokenizer, document), config) for document in documents]
    ratios = mean(measured)
    choices = [choose(each.of_groups, share, threshold) for each in measured]
    agreement = min(overlap(first, second) for first in choices for second in choices)
    return ratios, choose(ratios.of_groups, share, threshold), agreement
