"""Two books cut into alternating segments: does recall find its way back to the right one?

What was read last is always of the other book, so without a cache only what is recalled from further back can
help.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.scoring import stream_nll
from hiermem.memory.policies import SegmentLocalPolicy
from hiermem.text import encode

if TYPE_CHECKING:
    from hiermem.memory.hmt.module import HMTModule
    from hiermem.model import HierMemModel


def check(config: HierMemConfig, books: int) -> None:
    """Refuse what cannot be measured before anything is loaded.

    Raises:
        InputError: segments recall nothing or the last one alone, a cache is carried on, or there is only one
            book.
    """
    if not config.summary.tokens or config.summary.last < 2:
        raise InputError(
            "Segments of this model recall nothing from further back: give another one to --model."
        )
    if config.working.policy != SegmentLocalPolicy.name:
        raise InputError(
            "This model carries a cache from segment to segment, which holds both books: give one to --model "
            f"whose policy is {SegmentLocalPolicy.name}."
        )
    if books < 2:
        raise InputError("Two books are needed to tell one from the other: give --data or --limit more.")


@torch.inference_mode()
def evaluate(
    model: "HierMemModel", texts: dict[str, str], segments: int, journal: ResultLog
) -> dict[str, Any]:
    """Neighbouring books in pairs; segments count from each book's second one on.

    Metrics are ``right``, how often the segment that is recalled most is of the right book; ``weight``, the
    share of the recall attention that is on it; ``perplexity`` and the same without recall, where every
    segment gets the first one's memory prompt. Sensory tokens are of the other book in both.
    """
    from tqdm.auto import tqdm

    cut = {name: _segments(model, name, text, segments) for name, text in texts.items()}
    pairs = list(pairwise(cut.items()))
    rows = []
    for (one, ids), (other, others) in tqdm(pairs, desc="pairs", unit="pair", disable=None, delay=2):
        read = torch.stack((ids, others), dim=1).flatten(0, 1)  # [2 * segments, L], the books in turn
        rows.append(journal.row(f"{one}, {other}", _row, model, f"{one}, {other}", read))
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("right", "weight")}
    for name in ("perplexity", "without_recall"):
        means[name] = math.exp(sum(math.log(row[name]) for row in rows) / len(rows))
    return {"metrics": means, "n": sum(row["n"] for row in rows), "rows": rows}


def _segments(model: "HierMemModel", name: str, text: str, count: int) -> Tensor:
    """The first segments of a book, which begins as every text does, ``[count, L]`` int64."""
    L = model.config.segment
    ids = encode(model.tokenizer, text, begins=True)
    if len(ids) < count * L:
        raise InputError(
            f"Book {name} has {len(ids)} tokens, {count} segments take {count * L}: lower --segments."
        )
    return torch.tensor(ids[: count * L]).view(count, L)


def _row(model: "HierMemModel", pair: str, read: Tensor) -> dict[str, Any]:
    assert model.summary is not None
    with _recalled(model.summary) as weights:
        recalling = _nll(model, read, recall=True)
    assert len(weights) == len(read) - 1  # all but the first have something to recall
    right, mass = [], []
    for number, own in enumerate(weights[1:], start=2):
        same = torch.arange(number - len(own), number) % 2 == number % 2
        right.append(float(same[own.argmax()]))
        mass.append(float(own[same].sum()))
    counted = len(right)
    return {
        "pair": pair,
        "right": sum(right) / counted,
        "weight": sum(mass) / counted,
        "perplexity": math.exp(float(recalling[2:].mean())),
        "without_recall": math.exp(float(_nll(model, read, recall=False)[2:].mean())),
        "n": counted,
    }


def _nll(model: "HierMemModel", read: Tensor, recall: bool) -> Tensor:
    """Negative log-likelihood in nats of the tokens of each segment but its first, ``[n, L - 1]``."""
    memory = model.new_recurrent_memory()
    assert memory.recurrence is not None
    rows = []
    for segment in read:
        if not recall:
            memory.recurrence.forget()
        rows.append(torch.cat(list(stream_nll(model.reader, memory, segment))))
    return torch.stack(rows)


@contextmanager
def _recalled(summary: "HMTModule") -> Iterator[list[Tensor]]:
    """Collects how much each past segment is recalled, ``[n]``, whenever something is."""
    found: list[Tensor] = []

    def note(_: Any, given: tuple[Tensor, Tensor, Tensor]) -> None:
        if given[1].shape[1]:
            found.append(summary.weights(*given)[0].float().cpu())

    hook = summary.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()
