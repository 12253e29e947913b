"""Streaming perplexity of a text: it is read once, each token is scored once, given all that came before."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hiermem.errors import InputError
from hiermem.eval.metrics import perplexity
from hiermem.eval.scoring import stream_nll
from hiermem.memory.working import WorkingMemory
from hiermem.text import beginning, encode_with_spans

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Stretch of a text that is read, and how much of it is scored.

    Attributes:
        start: first token that is read.
        tokens: how many are read; None: all.
        score_from: only predictions made from this token on are scored.
        window: everything is forgotten after so many tokens; None: nothing is.
        overlap: tokens read again, unscored, at the start of a window.
    """

    start: int = 0
    tokens: int | None = None
    score_from: int = 0
    window: int | None = None
    overlap: int = 1


def score_text(model: "HierMemModel", name: str, text: str, stretch: Stretch) -> dict[str, Any]:
    """Perplexity per token and per word, words being what stands between white space, and bits per byte.

    Args:
        name: of the text, in the bar and in errors.

    Returns them with ``n``, the scored tokens; ``curve``, the mean negative log-likelihood in nats along the
    text; and ``live_tokens_max``, the most tokens that a head held.

    Raises:
        InputError: the text is too short.
    """
    tokens, spans = encode_with_spans(model.tokenizer, text)
    end = len(tokens) if stretch.tokens is None else stretch.start + stretch.tokens
    first = beginning(model.tokenizer)
    ids = torch.tensor(first + tokens[stretch.start : end])
    if len(ids) < len(first) + stretch.score_from + 2:
        raise InputError(
            f"The text {name} has {len(tokens)} tokens, too few to score any after token "
            f"{stretch.start + stretch.score_from}: lower --start-token or --score-from."
        )
    spans = spans[stretch.start : end][stretch.score_from + 1 :]
    scored = text[spans[0][0] : spans[-1][1]]
    blocks: list[Tensor] = []
    live = 0
    with tqdm(total=len(ids), unit="tok", unit_scale=True, desc=name, disable=None, delay=2) as bar:
        for memory, block in _windows(model, ids, stretch):
            blocks.append(block)
            live = max(live, memory.frames.counts.peak_tokens)
            bar.update(len(block))
    nll = torch.cat(blocks)[len(first) + stretch.score_from :]
    total = float(nll.double().sum())
    return {
        "perplexity": perplexity(total, len(nll)),
        "word_perplexity": perplexity(total, len(scored.split())),
        "bits_per_byte": total / math.log(2) / len(scored.encode("utf-8")),
        "n": len(nll),
        "curve": _curve(nll),
        "live_tokens_max": live,
    }


def _curve(nll: Tensor, parts: int = 32) -> list[float]:
    """Mean negative log-likelihood in nats along the text, in equal parts."""
    return [float(piece.mean()) for piece in nll.tensor_split(min(parts, len(nll)))]


def _windows(model: "HierMemModel", ids: Tensor, stretch: Stretch) -> Iterator[tuple[WorkingMemory, Tensor]]:
    """Negative log-likelihood of every token after the first, once, and the memory it was read with."""
    step, first = stretch.window or len(ids), torch.tensor(beginning(model.tokenizer), dtype=ids.dtype)
    for start in range(0, len(ids), step):
        # The text's own beginning stands in the first window already.
        overlap, before = min(stretch.overlap, start), first if start else first[:0]
        memory = model.new_recurrent_memory()
        unscored = max(len(before) + overlap - 1, 0)
        part = torch.cat((before, ids[start - overlap : start + step]))
        for block in stream_nll(model.reader, memory, part):
            yield memory, block[unscored:]
            unscored = max(unscored - len(block), 0)
