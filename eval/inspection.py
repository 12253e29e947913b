"""Which tokens of a text the KV heads still hold once it has been read, as a page for a browser."""

import json
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.text import beginning, stream_tokens

_PAGE = files("hiermem.eval").joinpath("inspection.html").read_text("utf-8")
BEGINS = _PAGE.partition("$")[0].encode()
"""How every page begins."""


class Size(NamedTuple):
    """The cache at one moment.

    Attributes:
        read: tokens read so far.
        tokens: tokens that a KV head holds, in the mean over layers and heads.
        bytes: of all cached tensors, bookkeeping included.
    """

    read: int
    tokens: float
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """The tokens of a text that the working memory still holds.

    Attributes:
        name: of the text.
        backbone: name of the model that read it.
        policy: what decided which tokens are kept.
        budget: tokens that a KV head keeps after a decision, in the mean; None: the policy has no use for it.
        tokens: the characters of each token; together they are the text as far as it was read. A token that
            ends inside a character is empty, and so is one that stands for no character.
        counts: KV heads that hold each token at the end, layers x tokens.
        heads: KV heads of each layer.
        sizes: the cache after each chunk, and once more after the last decision.
    """

    name: str
    backbone: str
    policy: str
    budget: int | None
    tokens: list[str]
    counts: list[list[int]]
    heads: list[int]
    sizes: list[Size]


def inspect(
    model: HierMemModel, text: str, limit: int = 4096, name: str = "text", progress: bool = True
) -> Inspection:
    """Read the first ``limit`` tokens of a text and list what its working memory has kept.

    Args:
        name: of the text, for the page.
        progress: show a progress bar on long work, where the error stream is a terminal.

    Raises:
        InputError: the text is empty, or is not valid Unicode.
    """
    from tqdm.auto import tqdm

    ids, tokens = _first_tokens(model.tokenizer, text, limit)
    config, sizes = model.config.working, []
    memory = model.new_working_memory(config)
    bar = tqdm(
        total=ids.shape[1],
        unit="tok",
        unit_scale=True,
        desc=name,
        disable=None if progress else True,
        delay=2,
    )

    def after_chunk(tokens: int) -> None:
        sizes.append(_size(memory))
        bar.update(tokens)

    with torch.inference_mode(), bar:
        model.reader.read(memory, ids.to(model.device), after_chunk)
        memory.evict()
    sizes.append(_size(memory))
    counts, heads = _held(memory)
    backbone = model.config.backbone or model.backbone.config.model_type
    budget = config.budget if memory.policy.evicts and not memory.policy.clears_cache else None
    return Inspection(name, backbone, config.policy, budget, tokens, counts, heads, sizes)


def _first_tokens(tokenizer: Any, text: str, limit: int) -> tuple[Tensor, list[str]]:
    """At most ``limit`` tokens as ids ``[1, n]`` int64, and the characters of each."""
    ids = beginning(tokenizer)
    starts = [0] * len(ids)
    for block in stream_tokens(tokenizer, [text]):
        ids, starts = ids + block.ids, starts + block.starts
        if len(ids) > limit:
            break
    if not text or not ids:
        raise InputError("The document is empty: give a text with at least one character.")
    characters = [text[start:end] for start, end in pairwise([*starts, len(text)])]
    return torch.tensor([ids[:limit]]), characters[:limit]


def _size(memory: WorkingMemory) -> Size:
    return Size(memory.num_tokens[0], memory.cache.mean_tokens, memory.nbytes)


def _held(memory: WorkingMemory) -> tuple[list[list[int]], list[int]]:
    """For each layer how many KV heads hold each token of row 0, and how many there are."""
    counts = torch.zeros(len(memory.geometries), memory.num_tokens[0], dtype=torch.int64)
    heads = [0] * len(memory.geometries)
    for part, cache in zip(memory.cache.head_groups, memory.caches, strict=True):
        assert cache.positions is not None
        held = cache.positions[0].cpu()  # [G, T]
        counts[part.layer] += torch.bincount(held[held >= 0], minlength=memory.num_tokens[0])
        heads[part.layer] += held.shape[0]
    return counts.tolist(), heads


def page(inspection: Inspection) -> str:
    """One HTML page that needs nothing else; the text can be read without its script."""
    last = inspection.sizes[-1]
    budget = "" if inspection.budget is None else f" and a budget of {inspection.budget:,}"
    summary = (
        f"{last.read:,} tokens, read by {inspection.backbone} with the policy {inspection.policy}{budget}. "
        f"In the end a KV head holds {last.tokens:,.1f} of them in the mean, {last.bytes / 2**20:,.1f} MiB "
        f"in all."
    )
    data = {
        "lengths": [len(token) for token in inspection.tokens],
        "counts": inspection.counts,
        "heads": inspection.heads,
        "sizes": inspection.sizes,
    }
    return Template(_PAGE).substitute(
        name=_as_html(inspection.name),
        summary=_as_html(summary),
        text=_as_html("".join(inspection.tokens)),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _as_html(text: str) -> str:
    """Text that a browser shows character by character: it would drop NUL and turn CR into LF."""
    return escape(text).replace("\r", "&#13;").replace("\0", "\N{REPLACEMENT CHARACTER}")
