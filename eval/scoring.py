"""Teacher-forced scoring of a text that is read once, in constant memory."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import NonFiniteError
from hiermem.memory.working import WorkingMemory, chunks

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


def stream_nll(model: "HierMemModel", memory: WorkingMemory, ids: Tensor) -> Iterator[Tensor]:
    """Negative log-likelihood in nats of each token after the first, given all that came before.

    Raises NonFiniteError where it is NaN or infinite.

    Args:
        memory: where the text goes on; it moves along.
        ids: ``[n]`` int64.

    Yields float32 tensors, one per chunk; together they hold ``n - 1`` values, each token scored once.
    """
    ids = ids.to(model.device)
    last: Tensor | None = None
    for at, take in chunks(memory, [len(ids)], model.config.chunk):
        logits = model.adapter.read_chunk(memory, ids[None, at : at + take], [take], logits=True)[0]
        targets = ids[at : at + take]
        if last is not None:
            logits = torch.cat((last, logits))
        else:
            targets = targets[1:]
        last = logits[-1:]
        nll = F.cross_entropy(logits[:-1].float(), targets, reduction="none").cpu()
        if not nll.isfinite().all():
            raise NonFiniteError(f"The likelihood of tokens {at} to {at + take} is not finite: use float32.")
        yield nll


def perplexity(nll_sum: float, count: int) -> float:
    """exp of the mean negative log-likelihood; infinite when nothing was counted."""
    try:
        return math.exp(nll_sum / count)
    except (ZeroDivisionError, OverflowError):
        return math.inf
