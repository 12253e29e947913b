"""Padded batches: which column of each row is which token."""

import torch
from torch import Tensor


def left_aligned(mask: Tensor | None, B: int, N: int) -> tuple[Tensor | None, list[int]]:
    """Where each row's real tokens are ``[B, N]``, real ones first, and how many; None if none is padding."""
    if mask is None:
        return None, [N] * B
    real = mask[:, -N:].bool()
    lengths = real.sum(1).tolist()
    if all(length == N for length in lengths):
        return None, lengths
    return (~real).to(torch.uint8).argsort(dim=1, stable=True), lengths


def wanted_columns(order: Tensor | None, B: int, N: int, keep: int) -> Tensor:
    """Aligned column of each position whose logits are wanted, ``[B, keep or N]`` int64."""
    columns = torch.arange(N).expand(B, N) if order is None else order.argsort(dim=1)
    return columns[:, -keep:]


def take_columns(blocks: list[tuple[int, Tensor]], wanted: Tensor) -> Tensor:
    """Logits at the wanted columns, ``[B, keep or N, vocabulary]``."""
    first = blocks[0][0]
    logits = blocks[0][1] if len(blocks) == 1 else torch.cat([block for _, block in blocks], dim=1)
    index = (wanted - first).to(logits.device)
    if torch.equal(index, torch.arange(logits.shape[1], device=index.device).expand(len(index), -1)):
        return logits
    return logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
