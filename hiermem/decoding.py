"""Greedy decoding of an answer, with nothing of what a checkpoint sets for `generate` but its end tokens.

A greedy answer that begins to say a phrase again and again does not stop by itself. Once the same
`LONGEST` tokens or fewer stand there `COPIES` times in a row, and at least `REPEATED` tokens together, it is
stopped, and the phrase is kept once.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hiermem.backbone import Backbone
from hiermem.errors import NonFiniteError
from hiermem.memory.working import WorkingMemory, chunks

COPIES, REPEATED, LONGEST = 3, 16, 64


def end_tokens(*known: Any) -> frozenset[int]:
    """The end tokens that configurations and a tokenizer name, all of them."""
    ends: set[int] = set()
    for one in known:
        own = getattr(one, "eos_token_id", None)
        ends |= set() if own is None else {own} if isinstance(own, int) else set(own)
    return frozenset(ends)


def greedy(
    adapter: Backbone, memory: WorkingMemory, ids: Tensor, ends: frozenset[int], limit: int, chunk: int
) -> tuple[list[int], bool]:
    """The likeliest tokens after ``ids [1, n]``, one by one; ``memory`` moves on.

    Args:
        ends: tokens that end it; they are left out.
        limit: most tokens.
        chunk: tokens of ``ids`` that are read at once.

    Returns the tokens, and whether they ended by themselves.

    Raises:
        NonFiniteError: the logits hold NaN.
    """
    new: list[int] = []
    while len(new) < limit:
        for at, take in chunks(memory, [ids.shape[1]], chunk):
            logits = adapter.read_chunk(memory, ids[:, at : at + take], [take], 1)
        if logits.isnan().any():
            raise NonFiniteError("The backbone's logits are not finite: compute in float32, or read anew.")
        ids = logits[:, -1:].argmax(dim=-1)
        token = int(ids)
        if token in ends:
            return new, True
        new.append(token)
        if size := repeated(new):
            return new[: len(new) - (_copies(size) - 1) * size], False
    return new, False


def repeated(tokens: Sequence[int]) -> int:
    """Length of the phrase that the last tokens say again and again; 0 where they do not."""
    for size in range(1, min(LONGEST, len(tokens) // COPIES) + 1):
        compared = (_copies(size) - 1) * size  # with what stands a phrase before
        if compared + size <= len(tokens) and tokens[-compared:] == tokens[-compared - size : -size]:
            return size
    return 0


def _copies(size: int) -> int:
    """How often a phrase of this length must stand there."""
    return max(COPIES, -(-REPEATED // size))
