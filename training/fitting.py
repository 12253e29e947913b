"""Where a training of the memory starts: recall fitted to what segments of books leave, in closed form.

Dimension names: n segments, L tokens of a segment, m memory embeddings of a segment, d backbone width.
"""

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.model import HierMemModel
from hiermem.training.samples import Samples

TOGETHER = 4
"""Segments that are read at once."""

TRIES = 4
"""Samples that are looked through for each segment that is wanted."""


@torch.no_grad()
def fit_recall(model: HierMemModel, samples: Samples, segments: int) -> None:
    """Centre and whiten what the recall attention of a neutral memory compares.

    Args:
        samples: what is trained on; its first ones are cut into segments.
        segments: how many are read, each alone.

    Raises:
        InputError: the samples are too short.
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
    summary.fit_recall(torch.cat(embeddings), torch.cat(queries) if half else None)


def _segments(samples: Samples, count: int, length: int) -> Tensor:
    """Whole segments of the first samples, ``[count, L]`` int64."""
    found: list[Tensor] = []
    for number in range(TRIES * count):
        ids = torch.tensor(samples[number].ids)
        found += ids[: len(ids) // length * length].view(-1, length)
        if len(found) >= count:
            return torch.stack(found[:count])
    raise InputError(
        f"Of the first {TRIES * count} samples only {len(found)} segments of {length} tokens can be cut, "
        f"{count} are needed: give longer texts or samples."
    )
