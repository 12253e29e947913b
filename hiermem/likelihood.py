"""Likelihoods that the backbone gives to tokens after what a memory holds."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hiermem.memory.working import WorkingMemory, chunks

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


def last_logits(model: "HierMemModel", memory: WorkingMemory, ids: Tensor, count: int) -> Tensor:
    """Float32 logits of the last ``count`` positions of ``ids [1, n]``, ``[count, vocabulary]``; ``memory``
    moves on."""
    end, blocks = ids.shape[1], []
    for at, take in chunks(memory, [end], model.config.chunk):
        wanted = min(max(at + take - (end - count), 0), take)
        output = model.adapter.read_chunk(memory, ids[:, at : at + take], [take], logits=wanted)
        if wanted:
            blocks.append(output[0])
    return torch.cat(blocks).float()
