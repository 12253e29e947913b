"""Where a training of the memory starts: recall fitted to what segments of books leave, in closed form.

Dimension names: n segments, L tokens of a segment, m memory embeddings of a segment, d backbone width.
"""

import torch
from torch import Tensor

from hiermem.model import HierMemModel
from hiermem.training.samples import Samples

TOGETHER = 4
"""Segments that are read at once."""


@torch.no_grad()
def fit_recall(model: HierMemModel, samples: Samples, segments: int) -> None:
    """Centre and whiten what the recall attention of a neutral memory compares.

    Args:
        samples: what is trained on; its first ones are cut into segments.
        segments: how many are read, each alone.
    """
    from tqdm.auto import tqdm

    summary, adapter, L = model.summary, model.adapter, model.config.segment
    assert summary is not None
    ids = _segments(samples, segments, L).to(model.device)
    half = L // 2 if model.config.summary.query == "half" else 0
    embeddings, queries = [], []
    for some in tqdm(ids.split(TOGETHER), desc="fitting recall", disable=None):
        embeddings.append(adapter.summary(summary, summary.first_prompt, some, [L] * len(some)))
        if half:
            first = some[:, :half]
            queries.append(adapter.summary(summary, summary.summary_prompt, first, [half] * len(some)))
    left = torch.cat(embeddings)
    summary.fit_recall(left, torch.cat(queries) if half else left)


def _segments(samples: Samples, count: int, length: int) -> Tensor:
    """Whole segments of the first samples, ``[count, L]`` int64."""
    found: list[Tensor] = []
    number = 0
    while len(found) < count:
        ids = torch.tensor(samples[number].ids)
        found += ids[: len(ids) // length * length].view(-1, length)
        number += 1
    return torch.stack(found[:count])
