"""The scan of a Mamba-2 head (SSD, arXiv 2405.21060): a linear recurrence, computed as matrix products.

    S_t = exp(-Δ_t A) S_{t-1} + Δ_t b_t x_tᵀ,        y_t = S_tᵀ c_t

Dimension names: B batch, H heads, T tokens, N state width (of b and c), P head width (of x and y), L tokens
of a block, n blocks.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64
"""Tokens of a block: within one, all pairs are computed; between them, states."""

SMALLEST = 16
"""Least width of a head, and of a block, that the kernels of mamba-ssm multiply."""


class ScanInputs(NamedTuple):
    """Inputs of the recurrence.

    Attributes:
        x: ``[B, H, T, P]``.
        steps: Δ, ``[B, H, T]``, at least 0; where it is 0, nothing is read and nothing decays.
        rates: A of each head, ``[H]``, at least 0.
        b: B of each token, ``[B, H, T, N]``.
        c: C of each token, ``[B, H, T, N]``.
    """

    x: Tensor
    steps: Tensor
    rates: Tensor
    b: Tensor
    c: Tensor


def scan(inputs: ScanInputs, state: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """All outputs and the last state, block by block, without a loop over tokens.

    On a GPU the kernels of mamba-ssm do it where that package is installed; they multiply in TF32.

    Args:
        state: S before the first token, ``[B, H, N, P]``.
        block: L.

    Returns:
        y ``[B, H, T, P]`` and S after the last token.
    """
    x, b = inputs.x, inputs.b
    if x.shape[2] == 1:
        return step_by_step(inputs, state)
    if x.is_cuda and min(x.shape[-1], b.shape[-1], block) >= SMALLEST and (kernel := _kernel()) is not None:
        return fused(kernel, inputs, state, block)
    return in_blocks(inputs, state, block)


@lru_cache
def _kernel() -> Callable[..., tuple[Tensor, Tensor]] | None:
    """`mamba_chunk_scan_combined` of mamba-ssm; None where that is not installed."""
    if find_spec("mamba_ssm") is None:
        return None
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        warnings.warn(f"mamba-ssm is installed and cannot be used ({error}): plain torch is.", stacklevel=3)
        return None
    return mamba_chunk_scan_combined


def fused(
    kernel: Callable[..., tuple[Tensor, Tensor]], inputs: ScanInputs, state: Tensor, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """`scan` by ``kernel``, which has tokens before heads and states transposed."""
    x, steps, rates, b, c = inputs
    x, steps, b, c = (tensor.transpose(1, 2).contiguous() for tensor in (x, steps, b, c))
    before = state.transpose(-1, -2).contiguous()
    y, after = kernel(x, steps, -rates, b, c, block, initial_states=before, return_final_states=True)
    return y.transpose(1, 2), after.transpose(-1, -2)


def in_blocks(inputs: ScanInputs, state: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """`scan` by matrix products of plain torch."""
    x, steps, rates, b, c = inputs
    T = x.shape[2]
    x, decay = x * steps.unsqueeze(-1), -steps * rates.unsqueeze(1)
    L = min(block, T)
    missing = -T % L
    if missing:  # zeros neither decay nor add
        x, b, c = (F.pad(tensor, (0, 0, 0, missing)) for tensor in (x, b, c))
        decay = F.pad(decay, (0, missing))
    x, b, c = (tensor.unflatten(2, (-1, L)) for tensor in (x, b, c))  # [B, H, n, L, ·]
    within = decay.unflatten(2, (-1, L)).cumsum(-1)  # [B, H, n, L]
    total = within[..., -1:]
    # What each block adds to the state: Σ_t exp(decay after t) Δ_t b_t x_tᵀ.
    left = (b * (total - within).exp().unsqueeze(-1)).transpose(-1, -2) @ x  # [B, H, n, N, P]
    before, state = _between(left, total.squeeze(-1), state)
    # Within a block all pairs of tokens, masked by what has decayed between them; before it, the state alone.
    pairs = (c @ b.transpose(-1, -2)) * _decays(within)
    y = pairs @ x + (c * within.exp().unsqueeze(-1)) @ before
    return y.flatten(2, 3)[:, :, :T], state


def _decays(within: Tensor) -> Tensor:
    """Share of each token that is left at each later one of its block, ``[…, L, L]``; 0 at earlier ones."""
    L = within.shape[-1]
    apart = within.unsqueeze(-1) - within.unsqueeze(-2)
    earlier = torch.ones(L, L, dtype=torch.bool, device=within.device).tril()
    return apart.masked_fill(~earlier, -torch.inf).exp()


def _between(left: Tensor, total: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """States before each block, and after the last, from what blocks leave ``[B, H, n, N, P]``."""
    sums = F.pad(total, (1, 0)).cumsum(-1)  # [B, H, n + 1]
    mixing = _decays(sums)
    every = torch.cat((state.unsqueeze(2), left), dim=2)
    states = (mixing @ every.flatten(3)).unflatten(3, left.shape[3:])
    return states[:, :, :-1], states[:, :, -1].clone()  # a view would keep all of them


def step_by_step(inputs: ScanInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """`scan` token after token as defined: a step of decoding, and what the others are tested against."""
    x, steps, rates, b, c = inputs
    outputs = []
    kept, added = (-steps * rates.unsqueeze(1)).exp(), x * steps.unsqueeze(-1)
    for t in range(x.shape[2]):
        # S_t = exp(-Δ_t A) S_{t-1} + Δ_t b_t x_tᵀ, then y_t = S_tᵀ c_t
        state = kept[:, :, t, None, None] * state + b[:, :, t, :, None] * added[:, :, t, None]
        outputs.append((c[:, :, t].unsqueeze(2) @ state).squeeze(2))
    return torch.stack(outputs, dim=2), state
