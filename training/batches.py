"""Samples of training data, and rectangles of them.

Dimension names: B batch, N tokens of a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position whose prediction does not count, as torch's cross-entropy has it."""


@dataclass(frozen=True)
class Sample:
    """Consecutive tokens of training data.

    Attributes:
        name: document and place, for messages.
        ids: token ids, at most `SampleConfig.tokens`.
        scored: whether the prediction of each token counts.
    """

    name: str
    ids: list[int]
    scored: list[bool]


@dataclass(frozen=True)
class Batch:
    """Samples as one rectangle, all filled up to the same number of tokens.

    So all processes do the same computations, whatever their samples are (ZeRO-3 would wait for ever else),
    and no row needs a mask.

    Attributes:
        names: names of the samples.
        ids: token ids, ``[B, N]`` int64.
        labels: what each position should predict, ``[B, N]`` int64, -100 where nothing counts.
        lengths: how many tokens of each row are the sample's.
    """

    names: list[str]
    ids: Tensor
    labels: Tensor
    lengths: list[int]

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        return replace(self, ids=self.ids.to(device), labels=self.labels.to(device))


def collated(samples: Sequence[Sample], tokens: int) -> Batch:
    """Samples as one rectangle ``tokens`` wide; position i should predict the token at i + 1."""
    ids = torch.zeros(len(samples), tokens, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    for row, sample in enumerate(samples):
        tensor = torch.tensor(sample.ids)
        ids[row, : len(tensor)] = tensor
        labels[row, : len(tensor) - 1] = tensor[1:].masked_fill(~torch.tensor(sample.scored)[1:], IGNORED)
    lengths = [len(sample.ids) for sample in samples]
    return Batch([sample.name for sample in samples], ids, labels, lengths)
