"""Recall fitted in closed form to memory embeddings of books: the start of a training of the memory.

Dimension names: p pieces of books, n segments of a piece, L tokens of a segment, m memory embeddings of a
segment, d backbone width.
"""

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.hmt import fit
from hiermem.model import HierMemModel
from hiermem.training.samples import TrainingDataset


@torch.no_grad()
def fit_recall(model: HierMemModel, samples: TrainingDataset, pieces: int) -> None:
    """Fit the recall attention of a residual memory to tell pieces of books apart.

    Args:
        model: the model, whose recall attention changes.
        samples: training data; the first samples of full length are read.
        pieces: how many of them.

    Raises:
        InputError: the samples are too short.
    """
    from tqdm.auto import tqdm

    summary, L = model.summary, model.config.segment
    assert summary is not None
    n = samples.config.tokens // L
    if n < 2:
        raise InputError(f"Recall is fitted to samples of at least two segments of {L} tokens, not of {n}.")
    texts = [torch.tensor(ids, device=model.device) for ids in samples.full(pieces, n * L)]
    bar = tqdm(texts, desc="fitting recall", disable=None)
    pairs = [_embeddings_and_queries(model, ids[: n * L].view(n, L)) for ids in bar]
    embeddings, queries = (torch.stack(tensors) for tensors in zip(*pairs, strict=True))
    fit.fit_recall(summary, embeddings, queries if model.config.summary.query == "half" else None)


def _embeddings_and_queries(model: HierMemModel, segments: Tensor) -> tuple[Tensor, Tensor]:
    """Memory embeddings of segments ``[n, L]`` that follow one another, and their queries, ``[n, m, d]``.

    A segment's query is the summary of its first half. Where the memory recalls by the segment before,
    there is none, and the embeddings stand in its place.
    """
    summary, memory = model.summary, model.new_recurrent_memory()
    assert summary is not None and memory.recurrence is not None
    half = memory.recurrence.summary_tokens
    queries: list[Tensor] = []
    embeddings: list[Tensor] = []
    for segment in segments.split(1):
        if half:
            queries += model.adapter.summary(summary, summary.summary_prompt, segment[:, :half], [half])
        model.read_ids(memory, segment)
        (last,) = memory.recurrence.memory_embeddings
        assert last is not None
        embeddings.append(last[-1])
    stacked = torch.stack(embeddings)
    return stacked, torch.stack(queries) if half else stacked
