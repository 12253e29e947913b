"""States that Mamba heads carry through a document, in place of the cache of the heads that they replace.

Dimension names: B batch, H query heads, H' replaced ones, G KV heads, G' replaced ones, T columns that the
backbone reads, Q of them tokens, D head width.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.frames import FrameMove
from hiermem.memory.chunk import Chunk, real_first
from hiermem.memory.chunk_state import ChunkState, SavedRow
from hiermem.memory.mamba.local_attention import (
    LocalAttentionPlan,
    SinkWindowKV,
    local_attention,
    plan_local_attention,
)
from hiermem.memory.mamba.module import MambaHeads, MambaLayerState, ScanOrder
from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorSpec


class MambaCache(ChunkState):
    """The states of all layers' Mamba heads for a batch of documents.

    Args:
        heads: the parameters.

    Attributes:
        states: of every layer that has been read, by its index.
        segment_states: what they were at the last eviction that left nothing else.
    """

    batched: ClassVar = {"states": "fading.now", "segment_states": "fading.decided"}

    def __init__(self, heads: MambaHeads) -> None:
        self.heads = heads
        self.states: dict[int, MambaLayerState] = {}
        self.segment_states: dict[int, MambaLayerState] = {}
        self.end_chunk()

    # ---- reading one chunk

    def end_chunk(self) -> None:
        self._pending: dict[int, MambaLayerState] = {}
        self._chunk: Chunk | None = None
        self._order = ScanOrder()
        self._plans: dict[int | None, LocalAttentionPlan] = {}

    def begin(self, chunk: Chunk) -> None:
        self.end_chunk()
        self._chunk, self._order = chunk, scan_order(chunk)
        config = self.heads.config
        if not config.window:
            return
        first = next(iter(self.states.values()), None)
        old = 0 if first is None or first.near is None else first.near.prompt.shape[2]
        # Layers with the same sliding window see alike: one plan serves them all.
        for sliding in {self.heads.geometries[layer].window for layer, _ in self.heads.groups}:
            self._plans[sliding] = plan_local_attention(
                chunk, config.sinks, config.window, chunk.prefix or old, sliding
            )

    def attend(self, layer: int, qkv: QKV, attention: Attention) -> HeadOutputs:
        groups, rotary = self.heads.of_layer(layer), self.heads.geometries[layer].rotary
        if not groups:
            return []
        assert self._chunk is not None
        # Whole KV groups are replaced, with all query heads that share their keys.
        query = qkv.query.unflatten(1, (qkv.key.shape[1], -1))[:, groups].flatten(1, 2)
        key, value = qkv.key[:, groups], qkv.value[:, groups]
        state = self.states.get(layer)
        attended, near = None, None
        if (config := self.heads.config).window:
            before = None if state is None else state.near
            if before is None:
                before = SinkWindowKV.nothing(torch.cat((key, value), dim=-1), config.sinks, config.window)
            plan = self._plans[self.heads.geometries[layer].window]
            attended, near = local_attention(QKV(query, key, value), plan, before, attention)
        if rotary is not None:  # the recurrence knows no positions
            both = rotary.turn(torch.cat((query, key), dim=1), -self._chunk.position_ids.unsqueeze(1))
            query, key = both.split((query.shape[1], key.shape[1]), dim=1)
        carried = None if state is None else (state.conv_state, state.ssm_state)
        output, conv_state, ssm_state = self.heads(layer, query, key, value, self._order, carried)
        self._pending[layer] = MambaLayerState(conv_state, ssm_state, near)
        output = (output if attended is None else output + attended).to(value.dtype)
        return [(groups, output.reshape(len(output), len(groups), qkv.repeats * output.shape[2], -1))]

    def commit(self, chunk: Chunk, hidden: Tensor | None = None) -> None:
        self.states = {**self.states, **self._pending}
        self.end_chunk()

    def move(self, move: FrameMove) -> None:
        """Turn the last tokens' keys along with the frame; the first stay where they were read, at the far
        edge of the range."""
        if move.shift is None:
            return
        states = dict(self.states)
        for layer, state in self.states.items():
            rotary = self.heads.geometries[layer].rotary
            if state.near is None or rotary is None:
                continue
            keys, values = state.near.last.chunk(2, dim=-1)
            last = torch.cat((rotary.turn(keys, move.shift), values), dim=-1)
            states[layer] = replace(state, near=replace(state.near, last=last))
        self.states = states

    # ---- whole-memory operations

    def mark_segment(self) -> None:
        """Note that a segment ended here, of which nothing else is carried on: `rewind` comes back to it."""
        self.segment_states = self.states

    def rewind(self) -> None:
        """Go back to where the present segment began."""
        self.states = self.segment_states

    def specs(self, stored: Stored, row: SavedRow) -> dict[str, Any]:
        layers = sorted({layer for layer, _ in self.heads.groups})
        states = {layer: self._layer_specs(layer, row.prefix, row.dtype) for layer in layers}
        return {"states": states if row.num_tokens else {}, "segment_states": states if row.marked else {}}

    def _layer_specs(self, layer: int, prompt: int, dtype: torch.dtype) -> Any:
        config, shape = self.heads.config, self.heads.geometries[layer]
        groups, width = len(self.heads.of_layer(layer)), shape.width
        heads = groups * shape.repeats
        near = None
        if config.window:
            counts = (config.sinks, config.window - 1, prompt)
            pairs: Any = [TensorSpec(dtype, (1, groups, n, 2 * width)) for n in counts]
            near = SinkWindowKV(*pairs)
        conv_state: Any = TensorSpec(torch.float32, (1, heads, config.taps - 1, 3 * width))
        ssm_state: Any = TensorSpec(torch.float32, (1, heads, width, width))
        return MambaLayerState(conv_state, ssm_state, near)


def scan_order(chunk: Chunk) -> ScanOrder:
    """Order in which heads read a chunk's columns, and which of them leave something behind.

    What is read around a segment only sees: nothing of it stays in the states. Columns that a row has no use
    for come last.
    """
    if not (chunk.around or chunk.padded):
        return ScanOrder()
    device, shown = chunk.positions.device, chunk.prefix_mask if chunk.prefix else None
    valid = torch.tensor(chunk.valid, device=device)
    tokens = torch.arange(chunk.width, device=device) < valid.unsqueeze(1)
    before = _flags(chunk.starting, len(valid), chunk.prefix, device)
    before = before if shown is None else before & shown
    after = _flags(chunk.ending, len(valid), chunk.suffix, device)
    counted = torch.cat((before, tokens, after), dim=1)
    written = torch.cat((torch.zeros_like(before), tokens, torch.zeros_like(after)), dim=1)
    end = before.sum(1) + valid
    starts, ends = not chunk.prefix or all(chunk.starting), not chunk.suffix or all(chunk.ending)
    if shown is None and not chunk.padded and starts and ends:
        return ScanOrder(None, written, end)
    order = real_first(counted)
    return ScanOrder(order, written.gather(1, order), end)


def _flags(rows: Sequence[bool], batch: int, width: int, device: torch.device) -> Tensor:
    chosen = torch.tensor(rows or (False,) * batch, device=device)
    return chosen.unsqueeze(1).expand(-1, width)
