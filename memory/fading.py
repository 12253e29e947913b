"""Fading memory: the recurrent states that Mamba heads carry through a document in place of a cache.

Dimension names: B batch, H query heads, G KV heads, T columns that the backbone reads, D head width.
"""

from collections.abc import Collection
from copy import copy

import torch
from torch import Tensor

from hiermem.memory.chunk import Chunk
from hiermem.memory.heads import Heads
from hiermem.memory.mamba import Columns, HeadState, MambaHeads
from hiermem.memory.positions import Rotary


class Fading:
    """The states of all layers' Mamba heads for a batch of documents.

    Tensors are replaced, never written in place.

    Args:
        heads: the parameters.

    Attributes:
        replaced: the KV groups that keep no cache, as pairs of layer and group.
        states: of every layer that has been read, by its index.
    """

    def __init__(self, heads: MambaHeads) -> None:
        self.heads = heads
        self.replaced: Collection[tuple[int, int]] = heads.groups
        self.states: dict[int, HeadState] = {}
        self._decided: dict[int, HeadState] = {}
        self._pending: dict[int, HeadState] = {}
        self._columns: Columns | None = None

    # ---- reading one chunk

    def read(
        self,
        layer: int,
        chunk: Chunk,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary: Rotary | None,
        there: Tensor | None,
    ) -> Tensor:
        """Outputs ``[B, H', T, D]`` of the layer's H' replaced query heads.

        Args:
            query: ``[B, H, T, D]``, of all the layer's heads; key, value: ``[B, G, T, D]``.
            rotary: how query and key were rotated, at the chunk's frames; a Mamba head knows no positions.
            there: which columns of the chunk's lead may be seen, ``[B, lead]`` bool; None: all.
        """
        groups = self.heads.of_layer(layer)
        query = query.unflatten(1, (key.shape[1], -1))[:, groups].flatten(1, 2)
        key, value = key[:, groups], value[:, groups]
        if rotary is not None:
            back = -chunk.frames.unsqueeze(1)
            query, key = (rotary.turn(t, back.expand(t.shape[:3])) for t in (query, key))
        if self._columns is None:
            self._columns = columns_of(chunk, there)
        before = None if (known := self.states.get(layer)) is None else (known.tail, known.state)
        output, tail, state = self.heads(layer, query, key, value, self._columns, before)
        self._pending[layer] = HeadState(tail, state)
        return output.to(value.dtype)

    def placed(
        self, outputs: list[tuple[Heads, Tensor]], groups: list[int], own: Tensor, layer: int
    ) -> list[tuple[Heads, Tensor]]:
        """A layer's outputs with the Mamba heads' beside those of attention.

        Args:
            outputs: of attention, for some KV groups at a time ``[B, g, R * T, D]``.
            groups: what the Mamba heads replace.
            own: their outputs, ``[B, G', R * T, D]``.
        """
        return [*outputs, (groups, own)]

    def commit(self) -> None:
        """Take in what the present chunk leaves."""
        self.states = {**self.states, **self._pending}

    def decided(self) -> None:
        """Note that a decision was made here: `rewind` comes back to it."""
        self._decided = self.states

    def forget_chunk(self) -> None:
        """Drop what belongs to the present chunk alone."""
        self._pending, self._columns = {}, None

    # ---- whole-memory operations

    def copy(self) -> "Fading":
        """An independent one with the same content."""
        twin = copy(self)
        twin._pending, twin._columns = {}, None
        return twin

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        self.states, self._decided = (
            {layer: state.detached() for layer, state in states.items()}
            for states in (self.states, self._decided)
        )

    def rewind(self) -> None:
        """Go back to the last decision, where the present segment began."""
        self.states = self._decided

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes old row ``index[i]`` (int64)."""
        self.states = {layer: state.rows(index) for layer, state in self.states.items()}
        self._decided = {layer: state.rows(index) for layer, state in self._decided.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, named ``fading.<when>.<layer>.<tensor>``."""
        return {
            f"fading.{when}.{layer}.{name}": tensor
            for when, states in (("now", self.states), ("decided", self._decided))
            for layer, state in states.items()
            for name, tensor in state.tensors().items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`, whose names come without ``fading``."""
        found: dict[str, dict[int, dict[str, Tensor]]] = {"now": {}, "decided": {}}
        for name, tensor in tensors.items():
            when, layer, rest = name.split(".")
            found[when].setdefault(int(layer), {})[rest] = tensor
        self.states, self._decided = (
            {layer: HeadState(**named) for layer, named in found[when].items()} for when in ("now", "decided")
        )


def columns_of(chunk: Chunk, there: Tensor | None) -> Columns:
    """Which of a chunk's columns heads read, in which order, and which of them leave something behind.

    What is read around a segment only sees: nothing of it stays in the states. Columns that a row has no use
    for come last.

    Args:
        there: which columns of the lead may be seen, ``[B, lead]`` bool; None: all.
    """
    if not (chunk.lead or chunk.tail or chunk.padded):
        return Columns()
    device, Q = chunk.positions.device, chunk.positions.shape[1]
    valid = torch.tensor(chunk.valid, device=device)
    tokens = torch.arange(Q, device=device) < valid.unsqueeze(1)
    before = _flags(chunk.starting, len(valid), chunk.lead, device)
    before = before if there is None else before & there
    after = _flags(chunk.ending, len(valid), chunk.tail, device)
    counted = torch.cat((before, tokens, after), dim=1)
    written = torch.cat((torch.zeros_like(before), tokens, torch.zeros_like(after)), dim=1)
    end = before.sum(1) + valid
    starts, ends = not chunk.lead or all(chunk.starting), not chunk.tail or all(chunk.ending)
    if there is None and not chunk.padded and starts and ends:
        return Columns(None, written, end)
    order = counted.to(torch.int8).argsort(dim=1, descending=True, stable=True)
    return Columns(order, written.gather(1, order), end)


def _flags(rows: tuple[bool, ...], batch: int, width: int, device: torch.device) -> Tensor:
    chosen = torch.tensor(rows or (False,) * batch, device=device)
    return chosen.unsqueeze(1).expand(-1, width)
