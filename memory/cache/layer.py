"""The cache of KV heads of one attention layer: plain tensors, and what may be done to whole rows of them.

Dimension names: B batch, G KV heads, T cached tokens, D head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hiermem.memory.cache.positions import Rotary
from hiermem.memory.stored import Stored, in_range


@dataclass(frozen=True)
class LayerGeometry:
    """What the working memory must know of one attention layer.

    Attributes:
        window: width of its sliding attention window in tokens, or None for full attention.
        rotary: how its keys are rotated, or None where positions are not rotary.
        heads: number of its KV heads; 0 where nothing depends on it.
        repeats: number of query heads of each KV head; 0 where that is not known.
        width: of a head; 0 where that of keys and values differs.
        widths: of keys and of values; 0 where nothing depends on them.
    """

    window: int | None = None
    rotary: Rotary | None = None
    heads: int = 0
    repeats: int = 1
    width: int = 0
    widths: tuple[int, int] = (0, 0)


@dataclass
class LayerCache:
    """The cache of some KV heads of one layer; all tensors are None until the first chunk.

    Attributes:
        keys: ``[B, G, T, D]``, rotated at `frames`.
        values: ``[B, G, T, D]``.
        positions: true positions, ``[B, G, T]`` int64, ascending, -1 where a slot is empty.
        frames: positions that the keys are rotated at, ``[B, G, T]`` int32.
        state: the policy's per-token tensors.
        holes: whether any slot may be empty (known without asking the device).
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    positions: Tensor | None = None
    frames: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    ragged: bool = False

    @property
    def tokens(self) -> int:
        """T, the slots of each KV head."""
        return 0 if self.keys is None else self.keys.shape[2]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name; empty before the first chunk."""
        if self.keys is None:
            return {}
        assert self.values is not None and self.positions is not None and self.frames is not None
        named = {
            "keys": self.keys,
            "values": self.values,
            "positions": self.positions,
            "frames": self.frames,
        }
        return named | {f"state.{name}": value for name, value in self.state.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], ragged: bool) -> "LayerCache":
        """The inverse of `tensors`."""
        fields = {name: value for name, value in tensors.items() if not name.startswith("state.")}
        state = {name[6:]: value for name, value in tensors.items() if name.startswith("state.")}
        return cls(**fields, state=state, ragged=ragged)

    @classmethod
    def load(
        cls,
        stored: Stored,
        heads: int,
        widths: tuple[int, int],
        state: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        ragged: bool,
    ) -> "LayerCache":
        """The inverse of `tensors`, of one row; nothing where nothing is stored.

        Args:
            heads: G.
            widths: D of keys and of values; 0: any.
            state: shape of a token's state of each name.

        Raises:
            ValueError: something is missing or of another kind.
        """
        if not stored:
            return cls(ragged=ragged)
        keys = stored.take("keys", dtype, 1, heads, None, widths[0] or None)
        slots = (1, heads, keys.shape[2])
        kinds = (torch.float32, torch.promote_types(torch.float32, dtype))
        memory = cls(
            keys,
            stored.take("values", dtype, *slots, widths[1] or None),
            stored.take("positions", torch.int64, *slots),
            stored.take("frames", torch.int32, *slots),
            {name: stored.take(f"state.{name}", kinds, *slots, *own) for name, own in state.items()},
            ragged,
        )
        stored.done()
        return memory

    def check_slots(self, seen: int, highest: int) -> None:
        """Refuse positions that are not those of some of the first ``seen`` tokens in order, and frames above
        ``highest``.

        Raises:
            ValueError: they are not.
        """
        if self.positions is None or self.frames is None:
            return
        in_range(self.positions, -1, seen - 1, "a position")
        in_range(self.frames, 0, highest, "a frame")
        before, after = self.positions[..., :-1], self.positions[..., 1:]
        if not bool(((after > before) | (after == -1) & (before == -1)).all()):
            raise ValueError("positions are not in order")
        if not self.ragged and bool((self.positions < 0).any()):
            raise ValueError("there are empty slots")

    def of_heads(self, heads: "slice | list[int]") -> "LayerCache":
        """The memory of some of the KV heads alone; shares storage."""
        return LayerCache.from_tensors({name: t[:, heads] for name, t in self.tensors().items()}, self.ragged)

    def detached(self) -> "LayerCache":
        """The same content without gradients."""
        return LayerCache.from_tensors({name: t.detach() for name, t in self.tensors().items()}, self.ragged)

    def rows(self, index: Tensor) -> "LayerCache":
        """The memory of other batch rows, ``index [B'] int64``."""
        tensors = {name: t.index_select(0, index.to(t.device)) for name, t in self.tensors().items()}
        return LayerCache.from_tensors(tensors, self.ragged)
