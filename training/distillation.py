"""Distillation of Mamba heads from the attention heads that they replace, layer by layer.

The backbone reads with full attention. Beside every head that is to be replaced, its Mamba head gets the same
queries, keys and values, and its output is compared with the attention head's. Only the Mamba heads require
gradients, so a step costs little more than reading.

Dimension names: B batch, H query heads of a layer, G KV heads, R = H / G, T columns, D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.attention import QKV, Attention
from hiermem.memory.chunk import Chunk
from hiermem.memory.hmt.segments import Encoder
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.settings import check_settings
from hiermem.training.batches import Batch
from hiermem.training.distributed import broadcast_from_rank0
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.recency import RecencyConfig, choose, mean, recency_ratios
from hiermem.training.samples import TrainingDataset


@dataclass(frozen=True)
class ReplacementConfig:
    """Settings of the choice of heads that Mamba heads replace in a backbone that still has all of them.

    Attributes:
        share: share of all KV groups that are replaced, those with the highest recency ratios.
        texts: samples of the training data that ratios are measured on, for the mean.
        recency: settings of the measurement.
    """

    share: float = 1 / 3
    texts: int = 2
    recency: RecencyConfig = field(default_factory=lambda: RecencyConfig(tokens=2048))

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.share < 1 or self.texts < 1:
            raise InputError(
                f"A share of the heads between 0 and 1 is replaced, after at least 1 text: not {self.share} "
                f"after {self.texts}."
            )


def replace_recent(model: HierMemModel, samples: TrainingDataset, config: ReplacementConfig) -> None:
    """Put untrained Mamba heads in the place of the heads with the highest recency ratios.

    Raises:
        InputError: the share is less than one KV group, or the samples are too short.
    """
    tokens = min(config.recency.tokens, samples.config.tokens, model.adapter.trained_range)
    if not round(config.share * sum(shape.heads for shape in model.adapter.geometries)):
        raise InputError(f"A share of {config.share} of the backbone's KV groups is none: raise --share.")
    texts = samples.full(config.texts, tokens)
    recency = replace(config.recency, tokens=tokens)
    ratios = mean([recency_ratios(model.reader, ids, recency) for ids in texts])
    groups = broadcast_from_rank0(choose(ratios.of_groups, share=config.share))
    model.replace_heads(replace(model.config.mamba, groups=groups))


class HeadDistillation(WorkingMemory):
    """A whole memory with Mamba heads beside the attention heads that they are to replace, which go on
    working.

    Args:
        model: the backbone and the heads.
        lengths: tokens of each text, ``[B]`` int64; what follows is padding.

    Attributes:
        lengths: as given.
        counted: which columns of the present chunk are held against attention, ``[B, T]`` float32.
        apart: of every layer, squared differences ``[B, G']`` of its replaced groups, summed up to here.
        power: the same of what attention put out.
    """

    def __init__(self, model: HierMemModel, lengths: Tensor) -> None:
        whole = model.adapter.whole_memory(len(lengths))
        super().__init__(whole.config, whole.geometries, whole.trained_range, len(lengths))
        self.lengths, self.learner = lengths, MambaCache(model.mamba)
        self.counted = torch.ones(1, 1)
        self.apart: dict[int, Tensor] = {}
        self.power: dict[int, Tensor] = {}

    def begin(self, ids: Tensor, valid: Sequence[int], encoder: Encoder | None = None) -> Chunk:
        chunk = super().begin(ids, valid, encoder)
        self.learner.begin(chunk)
        self._chunk_of_learner = chunk
        self.counted = (chunk.positions < self.lengths.unsqueeze(1)).float()
        return chunk

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        output = super().attend(layer, query, key, value, attention)
        for groups, learned in self.learner.attend(layer, QKV(query, key, value), attention):
            taught = output.permute(0, 2, 1, 3).unflatten(1, (key.shape[1], -1)).flatten(2, 3)[:, groups]
            self._compare(layer, learned.float(), taught.float().detach().contiguous())
        return output

    def _compare(self, layer: int, learned: Tensor, taught: Tensor) -> None:
        """Add up how far apart outputs ``[B, G', R * T, D]`` are, and how large the taught ones."""
        counted = self.counted.repeat(1, taught.shape[2] // self.counted.shape[1])[:, None, :, None]
        apart = ((learned - taught).square() * counted).sum((2, 3))
        power = (taught.square() * counted).sum((2, 3))
        for sums, new in ((self.apart, apart), (self.power, power)):
            sums[layer] = sums[layer] + new if layer in sums else new

    def commit(self, hidden: Tensor | None = None) -> None:
        super().commit(hidden)
        self.learner.commit(self._chunk_of_learner, hidden)


class HeadObjective(TrainingObjective):
    """A model whose Mamba heads imitate the attention heads that they replace, each for itself.

    Raises:
        InputError: no heads are replaced.
    """

    def __init__(self, model: HierMemModel) -> None:
        super().__init__(model)
        if not model.mamba.groups:
            raise InputError("There are no Mamba heads to train: replace some.")

    def forward(self, batch: Batch) -> Losses:
        """Squared error relative to the attention heads' power, the mean over KV groups.

        `Losses.nll` holds the same of each sample, ``[B, 1]``.
        """
        model = self.model
        memory = HeadDistillation(model, torch.tensor(batch.lengths, device=batch.ids.device))
        for _ in model.reader.stream(memory, batch.ids):
            pass
        errors = torch.cat(
            [memory.apart[layer] / power.clamp(min=1e-12) for layer, power in memory.power.items()], dim=1
        )
        each = errors.mean(dim=1)
        total = each.mean()
        return Losses(total, total.detach(), each.detach().unsqueeze(1), torch.zeros_like(total))
