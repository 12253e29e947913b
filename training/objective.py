"""What training minimises: language-model loss and a teacher's predictions, over all segments of a sample.

A sample is read segment by segment within one forward call (ZeRO-3 wants it so), gradients flow back through
caches and memory embeddings over a set number of segments, and each segment may be computed again in the
backward pass instead of being kept.

Dimension names: B batch, N tokens of a sample, L tokens of a segment, n segments, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.lora import has_lora
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.settings import check_settings
from hiermem.training.samples import IGNORED, Batch


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the loss.

    Attributes:
        language: weight of the negative log-likelihood.
        teacher: weight of the divergence from the backbone without adapters and Mamba heads and with full
            attention over the whole sample.
        depth: how many segments back the gradients of a loss may flow (truncated BPTT): a sample is cut into
            blocks of ``depth + 1`` segments, before each of which what was handed on becomes a constant.
        recompute: whether the activations of a segment are computed again in the backward pass.
        whole: whether all of a sample stays in the cache, whatever the model would keep.
    """

    language: float = 1.0
    teacher: float = 0.0
    depth: int = 1
    recompute: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.language, self.teacher) < 0 or self.language + self.teacher <= 0:
            raise InputError("The weights of the losses must not be negative and not all 0.")
        if self.depth < 0:
            raise InputError(f"Gradients cannot flow back {self.depth} segments: give 0 or more.")


class Losses(NamedTuple):
    """What a batch gave.

    Attributes:
        total: what is minimised, the mean over samples, a scalar with gradients.
        language: mean negative log-likelihood in nats of what should be predicted, a scalar, detached.
        nll: the same of each segment, ``[B, n]``, detached; 0 where nothing counts.
        teacher: mean divergence from the teacher, a scalar, detached; 0 without one.
    """

    total: Tensor
    language: Tensor
    nll: Tensor
    teacher: Tensor


class TrainingObjective(nn.Module):
    """A model and its loss as one module, as DeepSpeed trains it; called with a batch, it gives `Losses`."""

    def __init__(self, model: HierMemModel) -> None:
        super().__init__()
        self.model = model
        self.train()

    def train(self, mode: bool = True) -> "TrainingObjective":
        """As of every module; but dropout stays off: nothing in a step is random."""
        super().train(mode)
        self.model.backbone.eval()
        return self


class LanguageObjective(TrainingObjective):
    """A model that reads samples segment by segment."""

    def __init__(self, model: HierMemModel, config: ObjectiveConfig) -> None:
        super().__init__(model)
        self.config = config

    def forward(self, batch: Batch) -> Losses:
        """Losses of a batch; every sample counts the same, however many of its tokens do."""
        model, L = self.model, self.model.config.segment
        B, N = batch.ids.shape
        full = HierMemConfig.preset("bare").working
        memory = model.new_working_memory(full, B) if self.config.whole else model.new_recurrent_memory(B)
        teacher = None
        if self.config.teacher:
            teacher = model.adapter.whole_memory(B)
        sums, counts = [], []
        for number, start in enumerate(range(0, N, L)):
            if number % (self.config.depth + 1) == 0:
                memory.detach()
            part = slice(start, min(start + L, N))
            ids, labels = batch.ids[:, part], batch.labels[:, part]
            target = None if teacher is None else self._teach(teacher, ids)
            arguments = (memory, ids, labels, target)
            if self.config.recompute and self.training:
                nll, divergence, memory = checkpoint(self._segment, *arguments, use_reentrant=False)
            else:
                nll, divergence, memory = self._segment(*arguments)
            sums.append(torch.stack((nll, divergence)))
            counts.append((labels != IGNORED).sum(dim=1))
        both, counted = torch.stack(sums, dim=-1), torch.stack(counts, dim=-1)  # [2, B, n], [B, n]
        nll, divergence = (both.sum(-1) / counted.sum(-1).clamp(min=1)).mean(dim=1)
        total = self.config.language * nll + self.config.teacher * divergence
        by_segment = (both[0] / counted.clamp(min=1)).detach()
        return Losses(total, nll.detach(), by_segment, divergence.detach())

    def _segment(
        self, memory: WorkingMemory, ids: Tensor, labels: Tensor, target: Tensor | None
    ) -> tuple[Tensor, Tensor, WorkingMemory]:
        """Sums over a segment ``[B]`` of the two losses, and the memory after it; ``memory`` stays."""
        memory, model = memory.copy(), self.model
        B, L = ids.shape
        nll = divergence = torch.zeros(B, device=ids.device)
        for at, logits in model.reader.stream(memory, ids, logits=range(L)):
            logits, columns = logits.float(), slice(at, at + logits.shape[1])
            expected = labels[:, columns]
            losses = F.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="none")
            nll = nll + losses.view_as(expected).sum(dim=1)
            if target is not None:
                kl = F.kl_div(logits.log_softmax(-1), target[:, columns], reduction="none", log_target=True)
                divergence = divergence + (kl.sum(-1) * (expected != IGNORED)).sum(dim=1)
        return nll, divergence, memory

    @torch.no_grad()
    def _teach(self, memory: WorkingMemory, ids: Tensor) -> Tensor:
        """Log-probabilities ``[B, L, V]`` of the backbone that sees the whole sample; ``memory`` moves on."""
        model, L = self.model, ids.shape[1]
        with _without_lora(model):
            blocks = model.reader.stream(memory, ids, logits=range(L))
            return torch.cat([logits.float().log_softmax(-1) for _, logits in blocks], dim=1)


@contextmanager
def _without_lora(model: HierMemModel) -> Iterator[None]:
    """The backbone as it was before adapters were added."""
    adapted = has_lora(model.backbone)
    if adapted:
        model.backbone.disable_adapters()
    try:
        yield
    finally:
        if adapted:
            model.backbone.enable_adapters()
