"""Recall fitted to what segments of books leave, in closed form: where a training of the memory starts.

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
    """Let the recall attention of a residual memory see what tells pieces of books apart.

    Args:
        samples: what is trained on; its first ones of full length are read, as recall will find them.
        pieces: how many.

    Raises:
        InputError: the samples are too short.
    """
    from tqdm.auto import tqdm

    summary, L = model.summary, model.config.segment
    assert summary is not None
    n = samples.config.tokens // L
    if n < 2:
        raise InputError(f"Recall is fitted to samples of at least two segments of {L} tokens, not of {n}.")
    read = [torch.tensor(ids, device=model.device) for ids in samples.full(pieces, n * L)]
    left = [_left(model, ids[: n * L].view(n, L)) for ids in tqdm(read, desc="fitting recall", disable=None)]
    embeddings, queries = (torch.stack(own) for own in zip(*left, strict=True))
    fit.fit_recall(summary, embeddings, queries if model.config.summary.query == "half" else None)


def _left(model: HierMemModel, segments: Tensor) -> tuple[Tensor, Tensor]:
    """What segments ``[n, L]``, read one after the other, leave, and what recalls for them, ``[n, m, d]``."""
    summary, memory = model.summary, model.new_recurrent_memory()
    assert summary is not None and memory.recurrence is not None
    half = memory.recurrence.summary_tokens
    queries: list[Tensor] = []
    left: list[Tensor] = []
    for segment in segments.split(1):
        if half:
            queries += model.adapter.summary(summary, summary.summary_prompt, segment[:, :half], [half])
        model.read_ids(memory, segment)
        (past,) = memory.recurrence.memory_embeddings
        assert past is not None
        left.append(past[-1])
    embeddings = torch.stack(left)
    return embeddings, torch.stack(queries) if half else embeddings
