"""The cache of KV heads of one attention layer: plain tensors, and what may be done to its tokens.

Dimension names: B batch, G KV heads, R query heads per KV head, P keys of a prefix, Q new tokens, T cached
tokens, D head width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from hiermem.memory.attention import Heads
from hiermem.memory.cache.rope import Rotary
from hiermem.memory.stored import in_range
from hiermem.memory.tensor_state import TensorSpec, mapped


@dataclass(frozen=True)
class Prefix:
    """Prefix of a segment: seen by all its tokens, never evicted, replaced by the next.

    Attributes:
        keys: ``[B, G, P, D]``.
        values: ``[B, G, P, D]``.
    """

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class LayerCache:
    """The cache of some KV heads of one layer; all tensors are None until the first chunk.

    A subclass may keep keys and values in another form: it overrides `held`, `packed` and `specs`, and adds
    fields, whose tensors are ``[B, G, T, …]``. `LayerGeometry.cache` says which form a layer has.

    Attributes:
        keys: ``[B, G, T, D]``, rotated at `position_ids`.
        values: ``[B, G, T, D]``.
        positions: true positions, ``[B, G, T]`` int64, ascending, -1 where a slot is empty.
        position_ids: frame positions that the keys are rotated at, ``[B, G, T]`` int32.
        state: the policy's per-token tensors, ``[B, G, T, …]``.
        ragged: whether any slot may be empty (known without asking the device).
        prefix: what was read before the present segment.
        queries: the last n queries, rotated as keys are, ``[B, G, R, n, D]``; 0 where fewer were read.
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    positions: Tensor | None = None
    position_ids: Tensor | None = field(default=None, metadata={"file": "frames"})
    state: dict[str, Tensor] = field(default_factory=dict)
    ragged: bool = False
    prefix: Prefix | None = None
    queries: Tensor | None = None

    # ---- what another form overrides

    def held(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values as attention takes them, ``[B, G, T, D]`` each; None before the first chunk."""
        return None if self.keys is None or self.values is None else (self.keys, self.values)

    def packed(self, keys: Tensor, values: Tensor) -> dict[str, Any]:
        """The fields that keep keys and values of this form, as `held` gives them."""
        return {"keys": keys, "values": values}

    @classmethod
    def specs(cls, heads: int, widths: tuple[int, int], dtype: torch.dtype, size: str) -> dict[str, Any]:
        """Specs of its keys and values in a file, of one row.

        Args:
            heads: G.
            widths: D of keys and of values; 0: any.
            dtype: of the backbone's states.
            size: what T is called.
        """
        keys, values = (TensorSpec(dtype, (1, heads, size, width or None)) for width in widths)
        return {"keys": keys, "values": values}

    # ---- for all forms

    @classmethod
    def stored(
        cls,
        heads: int,
        widths: tuple[int, int],
        dtype: torch.dtype,
        size: str,
        state: Mapping[str, tuple[int, ...]],
    ) -> Self:
        """The cache of one row as a file holds it: a tree of specs.

        Args:
            heads: G.
            widths: D of keys and of values; 0: any.
            dtype: of the backbone's states.
            size: what T is called.
            state: shape of a token's state of each name.
        """
        slots, kinds = (1, heads, size), (torch.float32, torch.promote_types(torch.float32, dtype))
        specs: dict[str, Any] = cls.specs(heads, widths, dtype, size)
        specs["positions"], specs["position_ids"] = (
            TensorSpec(torch.int64, slots),
            TensorSpec(torch.int32, slots),
        )
        specs["state"] = {name: TensorSpec(kinds, (*slots, *shape)) for name, shape in state.items()}
        return cls(**specs)

    @property
    def tokens(self) -> int:
        """T, the slots of each KV head."""
        return 0 if self.positions is None else self.positions.shape[2]

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values that are held, and new ones behind them."""
        if (held := self.held()) is None:
            return keys, values
        # Attention sees this very tensor, and it becomes the cache: one copy serves both.
        return torch.cat((held[0], keys), dim=2), torch.cat((held[1], values), dim=2)

    def with_chunk(
        self, slots: "LayerCache", keys: Tensor, values: Tensor, prefix: Prefix | None
    ) -> "LayerCache":
        """The cache with a chunk's tokens, of which no policy has a state yet.

        Args:
            slots: positions of the chunk's tokens, ``[B, 1, Q]``, and whether any may be empty.
            keys: those of all tokens, as `extended` gives them.
            values: as the keys.
            prefix: what stands before the present segments from here.
        """
        assert slots.positions is not None and slots.position_ids is not None
        shape = (*keys.shape[:2], slots.positions.shape[2])
        positions, frames = slots.positions.expand(shape), slots.position_ids.expand(shape)
        if self.positions is not None and self.position_ids is not None:
            positions = torch.cat((self.positions, positions), dim=2)
            frames = torch.cat((self.position_ids, frames), dim=2)
        changes: dict[str, Any] = {"positions": positions, "position_ids": frames}
        changes |= {"ragged": self.ragged or slots.ragged}
        return replace(self, **changes, **self.packed(keys, values), state={}, prefix=prefix)

    def of_tokens(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The cache with every tensor that has a slot for each token changed."""
        names = [tree.name for tree in fields(self) if tree.name not in ("prefix", "queries")]
        return replace(self, **{name: mapped(change, getattr(self, name)) for name in names})

    def of_heads(self, heads: Heads) -> Self:
        """The tokens of some of the KV heads alone; shares storage."""
        return self.of_tokens(lambda tensor: tensor[:, heads])

    def gathered(self, slots: Tensor, empty: Tensor | None, ragged: bool = False) -> Self:
        """Some of the slots, ``[B, G, T'] int64``, in new and smaller tensors.

        Args:
            empty: which of them hold nothing, ``[B, G, T']`` bool; None: none does.
            ragged: whether any may.
        """
        B, G, T = slots.shape
        # One index over the flat rows of all heads: faster than a gather that is expanded over the width.
        base = torch.arange(B * G, device=slots.device).view(B, G, 1) * self.tokens
        rows = (base + slots).flatten()

        def pick(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, 2).index_select(0, rows).unflatten(0, (B, G, T))

        smaller = self.of_tokens(pick)
        if empty is None or smaller.positions is None:
            return replace(smaller, ragged=False)
        return replace(smaller, positions=smaller.positions.masked_fill(empty, -1), ragged=ragged)

    def turned(self, rotary: Rotary | None, position_ids: Tensor) -> Self:
        """The keys turned to stand at other frame positions, ``[B, G, T]`` int64."""
        held = self.held()
        assert held is not None and self.position_ids is not None
        changes: dict[str, Any] = {"position_ids": position_ids.to(torch.int32)}
        if rotary is None:
            return replace(self, **changes)
        # Rotations add up: R(a + s) = R(s) R(a), so the difference is all that is needed.
        keys = rotary.turn(held[0], position_ids - self.position_ids)
        return replace(self, **changes, **self.packed(keys, held[1]))

    def check_slots(self, num_tokens: int, highest: int) -> None:
        """Refuse positions that are not those of some of the first ``num_tokens`` in order, and frame
        positions above ``highest``.

        Raises:
            ValueError: they are not.
        """
        if self.positions is None or self.position_ids is None:
            return
        in_range(self.positions, -1, num_tokens - 1, "a position")
        in_range(self.position_ids, 0, highest, "a frame")
        before, after = self.positions[..., :-1], self.positions[..., 1:]
        if not bool(((after > before) | (after == -1) & (before == -1)).all()):
            raise ValueError("positions are not in order")
        if not self.ragged and bool((self.positions < 0).any()):
            raise ValueError("there are empty slots")


@dataclass(frozen=True)
class LayerGeometry:
    """Geometry of one attention layer, as the working memory needs it.

    Attributes:
        window: width of its sliding attention window in tokens, or None for full attention.
        rotary: how its keys are rotated, or None where positions are not rotary.
        heads: number of its KV heads; 0 where nothing depends on it.
        repeats: number of query heads of each KV head; 0 where that is not known.
        width: of a head; 0 where that of keys and values differs.
        widths: of keys and of values; 0 where nothing depends on them.
        cache: what its heads' cache is before the first chunk.
    """

    window: int | None = None
    rotary: Rotary | None = None
    heads: int = 0
    repeats: int = 1
    width: int = 0
    widths: tuple[int, int] = (0, 0)
    cache: LayerCache = LayerCache()
