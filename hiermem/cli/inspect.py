"""`hiermem inspect`: which tokens the working memory keeps, for a person to look at."""

from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt


def inspect(
    doc: opt.Document,
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("inspect.html"),
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
    budget: opt.Budget = None,
    chunk: opt.Chunk = None,
    positions: opt.Positions = None,
    evictor: opt.EvictorName = None,
    limit: Annotated[int, typer.Option(min=1, help="Read and show only so many first tokens.")] = 4096,
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Show in a browser which tokens of a document the KV heads keep.

    Writes one HTML page that needs nothing else: the text, shaded by how many heads still hold each token
    after reading, for all layers or one, and the size of the cache over time.

    Examples:

        hiermem inspect book.txt

        hiermem inspect book.txt --policy namm --budget 256 --limit 2048 --out namm.html
    """
    from hiermem.eval import inspection
    from hiermem.eval.result_log import check_apart, replaced, writable

    config = opt.configuration(
        model, preset, policy, budget, None, chunk, positions, evictor=evictor, policy_set=policy_set
    )
    text = opt.read_document(doc)
    check_apart(out, "--out", doc)
    writable(out, begins=inspection.BEGINS)
    reader = opt.load_model(model, config, dtype, device)
    name = "standard input" if doc == "-" else Path(doc).name
    found = inspection.inspect(reader, text, limit, name)
    replaced(out, inspection.page(found))
    tokens, mean, layers = len(found.tokens), found.sizes[-1].tokens, len(found.heads)
    words = (
        f"Wrote {out}: of {tokens} tokens a KV head holds {mean:.1f} in the mean over {layers} layers. "
        f"Open it in a browser."
    )
    result = {"out": str(out), "tokens": tokens, "live_tokens_mean": mean, "layers": layers}
    opt.emit(result, json, words)
