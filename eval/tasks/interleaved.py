"""Two books cut into alternating segments: does recall find its way back to the right one?

What was read last is always of the other book, so without a cache only what is recalled from further back can
help.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.comparison import labelled
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.pg19 import BookTask
from hiermem.text import encode

if TYPE_CHECKING:
    from torch import Tensor

    from hiermem.config import HierMemConfig
    from hiermem.memory.hmt.module import HMTModule
    from hiermem.model import HierMemModel


@register
@dataclass(frozen=True, kw_only=True)
class Interleaved(BookTask):
    """Pairs of books cut into alternating segments: does recall find the right book, what does it bring?

    Example:

        hiermem eval interleaved --data pg19 --model runs/memory --segments 32
    """

    name = "interleaved"
    title = "Interleaved books"

    model: str = option(help="Folder of a model whose segments leave memory embeddings.")
    segments: int = option(32, help="Segments read of each book.", least=2)

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same; refused where segments recall nothing or the last one alone, or a cache is carried on."""
        from hiermem.memory.policies import SegmentLocalPolicy

        if not config.summary.tokens or config.summary.last < 2:
            raise InputError(
                "Segments of this model recall nothing from further back: give another one to --model."
            )
        if config.working.policy != SegmentLocalPolicy.name:
            raise InputError(
                "This model carries a cache from segment to segment, which holds both books: give one to "
                f"--model whose policy is {SegmentLocalPolicy.name}."
            )
        return config

    def parts(self) -> tuple[str, ...]:
        return ("working", "namm", "summary", "mamba")

    def load(self, config: HierMemConfig) -> dict[str, str]:
        """Texts by the ids of their books, at least two."""
        data = super().load(config)
        if len(data) < 2:
            raise InputError("Two books are needed to tell one from the other: give --data or --limit more.")
        return data

    def settings(self, data: dict[str, str], config: HierMemConfig) -> dict[str, Any]:
        return {"books": list(data), "split": self.split, "segments": self.segments}

    def rows(self, model: HierMemModel, data: dict[str, str], log: ResultLog) -> dict[str, Any]:
        """Neighbouring books in pairs; segments count from each book's second one on.

        Metrics are ``right``, how often the segment that is recalled most is of the right book; ``weight``,
        the share of the recall attention that is on it; ``perplexity`` and the same without recall, where
        every segment gets the first one's memory prompt. Sensory tokens are of the other book in both.
        """
        import torch
        from tqdm.auto import tqdm

        cut = {name: _segments(model, name, text, self.segments) for name, text in data.items()}
        pairs, rows = list(pairwise(cut.items())), []
        bar = tqdm(pairs, desc="pairs", unit="pair", disable=None, delay=2)
        for (name, ids), (next_name, next_ids) in bar:
            turns = torch.stack((ids, next_ids), dim=1).flatten(0, 1)  # [2 * segments, L], the books in turn
            pair = f"{name}, {next_name}"
            rows.append(log.row(pair, _row, model, pair, turns))
        means = {name: sum(row[name] for row in rows) / len(rows) for name in ("right", "weight")}
        for name in ("perplexity", "without_recall"):
            means[name] = math.exp(sum(math.log(row[name]) for row in rows) / len(rows))
        return {"metrics": means, "n": sum(row["n"] for row in rows), "rows": rows}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        names = ("right", "weight", "perplexity", "without_recall")
        rows = [
            [name, r["config"]["model"], len(r["rows"]), *(r["metrics"][metric] for metric in names), r["n"]]
            for name, r in labelled(reports, shown=("model",))
        ]
        header = ["system", "model", "pairs", "right book recalled most", "attention on it", "perplexity"]
        return table([*header, "without recall", "n"], rows)


def _segments(model: HierMemModel, name: str, text: str, count: int) -> Tensor:
    """The first segments of a book, which begins as every text does, ``[count, L]`` int64."""
    import torch

    L = model.config.segment
    ids = encode(model.tokenizer, text, begins=True)
    if len(ids) < count * L:
        raise InputError(
            f"Book {name} has {len(ids)} tokens, {count} segments take {count * L}: lower --segments."
        )
    return torch.tensor(ids[: count * L]).view(count, L)


def _row(model: HierMemModel, pair: str, segments: Tensor) -> dict[str, Any]:
    import torch

    assert model.summary is not None
    with _recalled(model.summary) as weights:
        recalling = _nll(model, segments, recall=True)
    assert len(weights) == len(segments) - 1  # all but the first have something to recall
    right, mass = [], []
    for number, attention in enumerate(weights[1:], start=2):
        # The books alternate, so segments of the same one have the same parity.
        same = torch.arange(number - len(attention), number) % 2 == number % 2
        right.append(float(same[attention.argmax()]))
        mass.append(float(attention[same].sum()))
    counted = len(right)
    return {
        "pair": pair,
        "right": sum(right) / counted,
        "weight": sum(mass) / counted,
        "perplexity": math.exp(float(recalling[2:].mean())),
        "without_recall": math.exp(float(_nll(model, segments, recall=False)[2:].mean())),
        "n": counted,
    }


def _nll(model: HierMemModel, segments: Tensor, recall: bool) -> Tensor:
    """Negative log-likelihood in nats of the tokens of each segment but its first, ``[n, L - 1]``."""
    import torch

    from hiermem.eval.scoring import stream_nll

    memory = model.new_recurrent_memory()
    assert memory.recurrence is not None
    rows = []
    for segment in segments:
        if not recall:
            memory.recurrence.forget()
        rows.append(torch.cat(list(stream_nll(model.reader, memory, segment))))
    return torch.stack(rows)


@contextmanager
def _recalled(summary: HMTModule) -> Iterator[list[Tensor]]:
    """Collects how much each past segment is recalled, ``[n]``, whenever something is."""
    found: list[Tensor] = []

    def note(_: Any, arguments: tuple[Tensor, Tensor, Tensor]) -> None:
        if arguments[1].shape[1]:
            found.append(summary.weights(*arguments)[0].float().cpu())

    hook = summary.register_forward_pre_hook(note)
    try:
        yield found
    finally:
        hook.remove()
