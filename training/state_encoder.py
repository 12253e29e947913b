"""Training of the state encoder: sentences stand to one another as a sentence encoder has them stand.

It begins as the linear map that fits best, in closed form. Steps lower the divergence between the softmax of
similarities within a sample and that of the teacher's, and the distance of each embedding from the teacher's
(relational knowledge distillation, arXiv 1904.05068, with a softmax over the sample).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.memory.state_encoder import StateEncoder, StateEncoderConfig
from hiermem.model import HierMemModel
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.sentences import SentenceBatch, SentenceDataset

PLACES = (1 / 30, 8 / 30, 12 / 30)
"""Depths of the layers that are looked at, chosen for `smollm2` (docs/lab-notes/search.md)."""
SHARPNESS = 20.0
"""Factor of cosines before the softmax."""
CLOSENESS = 2.0
"""Weight of the distance from the teacher's embeddings."""
_RIDGE = 0.05


def add_state_encoder(model: HierMemModel, width: int) -> None:
    """Give a model a state encoder, still untrained, that looks at three of its layers.

    Args:
        width: W, of the teacher's embeddings.
    """
    count = len(model.adapter.geometries)
    layers = sorted({max(round(place * count), 1) for place in PLACES})
    config = StateEncoderConfig(layers, width=width)
    inputs = model.backbone.get_input_embeddings().weight.shape[1]
    model.config.state_encoder = config
    model.state_encoder = StateEncoder(config, inputs).to(model.device)


@torch.no_grad()
def begin_encoder(model: HierMemModel, data: SentenceDataset) -> None:
    """Let the encoder of a model begin as a linear map; its inner layer is noise that counts nothing yet."""
    encoder = model.state_encoder
    assert encoder is not None
    means, taught, mean, deviation = data.statistics()
    encoder.mean.copy_(mean)
    encoder.deviation.copy_(deviation.clamp(min=1e-6))
    x = (means - mean) / encoder.deviation.cpu()
    matrix = x.T @ x + _RIDGE * len(x) * torch.eye(x.shape[1])
    encoder.direct.weight.copy_(torch.linalg.solve(matrix, x.T @ (taught - taught.mean(0))).T)
    encoder.direct.bias.copy_(taught.mean(0))
    generator = torch.Generator().manual_seed(data.config.seed)
    noise = torch.randn(encoder.inner.weight.shape, generator=generator)
    encoder.inner.weight.copy_(noise / x.shape[1] ** 0.5)


class StateObjective(TrainingObjective):
    """A model and the distance of its sentence embeddings from a teacher's."""

    def forward(self, batch: SentenceBatch) -> Losses:
        """Divergence in nats a sentence, and distance; `Losses.nll` is ``[1, 1]``, the divergence."""
        encoder = self.model.state_encoder
        assert encoder is not None
        found = F.normalize(_sums(encoder(batch.states), batch.counts), dim=-1)
        mine, its = (_neighbours(each) for each in (found, batch.taught))
        divergence = F.kl_div(mine, its, reduction="batchmean", log_target=True)
        total = divergence + CLOSENESS * (1 - (found * batch.taught).sum(-1)).mean()
        shown = divergence.detach()
        return Losses(total, shown, shown.view(1, 1), torch.zeros_like(shown))


def _sums(vectors: Tensor, counts: Tensor) -> Tensor:
    """Sums of consecutive vectors, as many as each count says, ``[U, W]``."""
    rows = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return vectors.new_zeros(len(counts), vectors.shape[1]).index_add(0, rows, vectors)


def _neighbours(embeddings: Tensor) -> Tensor:
    """Log-probabilities of all others for each, by cosine, ``[U, U]``."""
    similar = SHARPNESS * embeddings @ embeddings.T
    return similar.masked_fill(torch.eye(len(similar), device=similar.device) > 0, -1e4).log_softmax(-1)
