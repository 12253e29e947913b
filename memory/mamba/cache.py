"""Fading memory: the recurrent states that Mamba heads carry through a document in place of a cache.

Dimension names: B batch, H query heads, G KV heads, T columns that the backbone reads, D head width.
"""

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.memory.cache.head_groups import Heads
from hiermem.memory.chunk import Chunk, real_first
from hiermem.memory.mamba.local_attention import (
    Attend,
    LocalAttentionPlan,
    SinkWindowKV,
    local_attention,
    plan_local_attention,
)
from hiermem.memory.mamba.module import MambaHeads, MambaLayerState, ScanOrder
from hiermem.memory.stored import Stored


class MambaCache:
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
        self.states: dict[int, MambaLayerState] = {}
        self._decided: dict[int, MambaLayerState] = {}
        self._pending: dict[int, MambaLayerState] = {}
        self._columns: ScanOrder | None = None
        self._views: dict[int | None, LocalAttentionPlan] = {}

    # ---- reading one chunk

    def read(
        self,
        layer: int,
        chunk: Chunk,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        there: Tensor | None,
        attend: Attend,
    ) -> Tensor:
        """Outputs ``[B, H', T, D]`` of the layer's H' replaced query heads.

        Args:
            query: ``[B, H, T, D]``, of all the layer's heads; key, value: ``[B, G, T, D]``, rotated at the
                chunk's frames.
            there: which columns before the present segment may be seen, ``[B, P]`` bool; None: all.
            attend: the backbone's attention.
        """
        groups, rotary = self.heads.of_layer(layer), self.heads.shapes[layer].rotary
        query = query.unflatten(1, (key.shape[1], -1))[:, groups].flatten(1, 2)
        key, value = key[:, groups], value[:, groups]
        known = self.states.get(layer)
        said, near = None, None
        if (config := self.heads.config).window:
            before = None if known is None else known.near
            if before is None:
                before = SinkWindowKV.nothing(torch.cat((key, value), dim=-1), config.sinks, config.window)
            view = self._view(layer, chunk, before, there)
            said, near = local_attention(query, key, value, view, before, attend)
        if rotary is not None:  # the recurrence knows no positions
            both = rotary.turn(torch.cat((query, key), dim=1), -chunk.frames.unsqueeze(1))
            query, key = both.split((query.shape[1], key.shape[1]), dim=1)
        if self._columns is None:
            self._columns = scan_order(chunk, there if chunk.lead else None)
        carried = None if known is None else (known.tail, known.state)
        output, tail, state = self.heads(layer, query, key, value, self._columns, carried)
        self._pending[layer] = MambaLayerState(tail, state, near)
        return (output if said is None else output + said).to(value.dtype)

    def _view(
        self, layer: int, chunk: Chunk, before: SinkWindowKV, there: Tensor | None
    ) -> LocalAttentionPlan:
        """How the layer's heads look at the chunk; the same for all layers with the same sliding window."""
        config, sliding = self.heads.config, self.heads.shapes[layer].window
        if sliding not in self._views:
            prompt = chunk.lead or before.prompt.shape[2]
            self._views[sliding] = plan_local_attention(
                chunk, config.sinks, config.window, prompt, there, sliding
            )
        return self._views[sliding]

    def placed(
        self, outputs: list[tuple[Heads, Tensor]], groups: list[int], own: Tensor, layer: int
    ) -> list[tuple[Heads, Tensor]]:
        """A layer's outputs with the Mamba heads' beside those of attention.

        Args:
            outputs: of attention, for some KV groups at a time ``[B, g, R * T, D]``.
            groups: what the Mamba heads replace.
            own: their outputs, ``[B, G', R * T, D]``.
            layer: which one; who only watches keeps it apart from the others.
        """
        return [*outputs, (groups, own)]

    def commit(self) -> None:
        """Take in what the present chunk leaves."""
        self.states = {**self.states, **self._pending}

    def moved(self, shift: Sequence[int]) -> None:
        """The frame of each row's next token has moved by ``shift``: the last tokens go along.

        The first tokens stay where they were read, at the far edge of the range.
        """
        states = dict(self.states)
        for layer, state in self.states.items():
            rotary = self.heads.shapes[layer].rotary
            if state.near is None or rotary is None:
                continue
            keys, values = state.near.last.chunk(2, dim=-1)
            by = torch.tensor(shift, device=keys.device).view(-1, 1, 1)
            last = torch.cat((rotary.turn(keys, by), values), dim=-1)
            states[layer] = replace(state, near=replace(state.near, last=last))
        self.states = states

    def decided(self) -> None:
        """Note that a decision was made here: `rewind` comes back to it."""
        self._decided = self.states

    def forget_chunk(self) -> None:
        """Drop what belongs to the present chunk alone."""
        self._pending, self._columns, self._views = {}, None, {}

    # ---- whole-memory operations

    def copy(self) -> "MambaCache":
        """An independent one with the same content."""
        twin = copy(self)
        twin.forget_chunk()
        return twin

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        self.states, self._decided = (
            {layer: state.each(Tensor.detach) for layer, state in states.items()}
            for states in (self.states, self._decided)
        )

    def rewind(self) -> None:
        """Go back to the last decision, where the present segment began."""
        self.states = self._decided

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes old row ``index[i]`` (int64)."""
        self.states, self._decided = (
            {
                layer: state.each(lambda tensor: tensor.index_select(0, index.to(tensor.device)))
                for layer, state in states.items()
            }
            for states in (self.states, self._decided)
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, named ``fading.<when>.<layer>.<tensor>``."""
        return {
            f"fading.{when}.{layer}.{name}": tensor
            for when, states in (("now", self.states), ("decided", self._decided))
            for layer, state in states.items()
            for name, tensor in state.tensors().items()
        }

    def load(self, stored: Stored, read: bool, decided: bool, prompt: int, dtype: torch.dtype) -> None:
        """The inverse of `tensors`, of one row; names come without ``fading``.

        Args:
            read: whether anything was read.
            decided: whether `decided` was called.
            prompt: columns that were read before the present segment.
            dtype: of the backbone's states.

        Raises:
            ValueError: something is missing or of another kind.
        """
        layers = sorted({layer for layer, _ in self.replaced})
        self.states, self._decided = (
            {layer: self._loaded(stored.within(f"{when}.{layer}"), layer, prompt, dtype) for layer in layers}
            if there
            else {}
            for when, there in (("now", read), ("decided", decided))
        )
        stored.done()

    def _loaded(self, stored: Stored, layer: int, prompt: int, dtype: torch.dtype) -> MambaLayerState:
        config, shape = self.heads.config, self.heads.shapes[layer]
        groups, width = len(self.heads.of_layer(layer)), shape.width
        heads = groups * shape.repeats
        tail = stored.take("tail", torch.float32, 1, heads, config.taps - 1, 3 * width)
        state, near = stored.take("state", torch.float32, 1, heads, width, width), None
        if config.window:
            columns = {"first": config.sinks, "last": config.window - 1, "prompt": prompt}
            near = SinkWindowKV(
                **{
                    name: stored.take(f"near.{name}", dtype, 1, groups, count, 2 * width)
                    for name, count in columns.items()
                }
            )
        stored.done()
        return MambaLayerState(tail, state, near)


def scan_order(chunk: Chunk, there: Tensor | None) -> ScanOrder:
    """Which of a chunk's columns heads read, in which order, and which of them leave something behind.

    What is read around a segment only sees: nothing of it stays in the states. Columns that a row has no use
    for come last.

    Args:
        there: which columns of the lead may be seen, ``[B, lead]`` bool; None: all.
    """
    if not (chunk.lead or chunk.tail or chunk.padded):
        return ScanOrder()
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
        return ScanOrder(None, written, end)
    order = real_first(counted)
    return ScanOrder(order, written.gather(1, order), end)


def _flags(rows: tuple[bool, ...], batch: int, width: int, device: torch.device) -> Tensor:
    chosen = torch.tensor(rows or (False,) * batch, device=device)
    return chosen.unsqueeze(1).expand(-1, width)
