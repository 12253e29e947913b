"""Selection of Mamba heads: those stay that change the backbone's predictions least, each KV group alone.

A high recency ratio says that a Mamba head can replace an attention head, not how well it has learned to. So
more heads may be trained than stay, and attention takes back the places of the others.

Dimension names: N tokens of a text, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.reader import Reader
from hiermem.settings import check_settings
from hiermem.training.batches import IGNORED, Batch, Sample, collated
from hiermem.training.distributed import broadcast_from_rank0
from hiermem.training.samples import KINDS, TrainingDataset


@dataclass(frozen=True)
class ChoiceConfig:
    """How many Mamba heads stay.

    Attributes:
        share: share of all KV groups of the backbone.
        texts: samples of each kind of training data that predictions are compared on.
    """

    share: float = 1 / 3
    texts: int = 1

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.share < 1 or self.texts < 1:
            raise InputError(
                f"A share of the heads between 0 and 1 is kept, after at least 1 text: not {self.share} "
                f"after {self.texts}."
            )


@torch.no_grad()
def keep_best_heads(model: HierMemModel, samples: TrainingDataset, config: ChoiceConfig) -> None:
    """Leave only the Mamba heads that change predictions least, with what they have learned.

    Raises:
        InputError: there are fewer than are to stay.
        NonFiniteError: predictions are not finite.
    """
    groups = model.mamba.groups
    count = round(config.share * sum(shape.heads for shape in model.adapter.geometries))
    if not 0 < count <= len(groups):
        raise InputError(
            f"{count} KV groups are to have Mamba heads, and {len(groups)} have: change --share."
        )
    kinds = [kind for kind, share in zip(KINDS, samples.config.shares, strict=True) if share]
    chosen = [samples.of_kind(kind)[number] for kind in kinds for number in range(config.texts)]
    costs = broadcast_from_rank0(divergences(model, chosen))
    if not all(map(math.isfinite, costs.values())):
        raise NonFiniteError("Predictions are not finite, so heads cannot be chosen: compute in float32.")
    kept = model.mamba.only(sorted(groups, key=lambda group: costs[group])[:count])
    model.replace_heads(kept.config)
    model.mamba.load_state_dict(kept.state_dict())


@torch.no_grad()
def divergences(model: HierMemModel, samples: Sequence[Sample]) -> dict[tuple[int, int], float]:
    """Of every replaced group alone: the divergence from the backbone's own predictions, in nats a token of
    those that count, the mean over samples."""
    from tqdm.auto import tqdm

    reader, sums = model.reader, dict.fromkeys(model.mamba.groups, 0.0)
    with tqdm(total=len(samples) * len(sums), desc="choosing heads", disable=None) as bar:
        for sample in samples:
            batch = collated([sample], len(sample.ids)).to(model.device)
            expected = _predictions(reader, reader.adapter.whole_memory(), batch)
            for group in sums:
                alone = reader.adapter.whole_memory(mamba=MambaCache(model.mamba.only([group])))
                found = _predictions(reader, alone, batch)
                sums[group] += float(F.kl_div(found, expected, reduction="batchmean", log_target=True))
                bar.update()
    return {group: total / len(samples) for group, total in sums.items()}


def _predictions(reader: Reader, memory: WorkingMemory, batch: Batch) -> Tensor:
    """Log-probabilities of what counts in one sample, ``[n, V]`` float32."""
    scored, blocks = batch.labels[0] != IGNORED, []
    for at, logits in reader.stream(memory, batch.ids, logits=range(len(scored))):
        counted = scored[at : at + logits.shape[1]]
        blocks.append(logits[0, counted].float().log_softmax(-1))
    return torch.cat(blocks)
