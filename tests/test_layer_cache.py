"""Another form of a layer's cache: one class, chosen by the geometry of a layer."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from readers import ids_of, reader, settings
from torch import Tensor

from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.tensor_state import TensorSpec
from hiermem.model import HierMemModel


def quantised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 and what they are multiplied by, one for each token of a head."""
    scales = values.abs().amax(-1, keepdim=True).clamp(min=1e-8) / 127
    return (values / scales).round().to(torch.int8), scales


@dataclass(frozen=True)
class Int8LayerCache(LayerCache):
    """Keys and values in eight bits.

    Attributes:
        key_scales, value_scales: ``[B, G, T, 1]``.
    """

    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    def held(self) -> tuple[Tensor, Tensor] | None:
        if self.keys is None or self.values is None:
            return None
        assert self.key_scales is not None and self.value_scales is not None
        return self.keys * self.key_scales, self.values * self.value_scales

    def packed(self, keys: Tensor, values: Tensor) -> dict[str, Any]:
        (keys, key_scales), (values, value_scales) = quantised(keys), quantised(values)
        return {"keys": keys, "values": values, "key_scales": key_scales, "value_scales": value_scales}

    @classmethod
    def specs(cls, heads: int, widths: tuple[int, int], dtype: torch.dtype, size: str) -> dict[str, Any]:
        scales = {f"{name}_scales": TensorSpec(dtype, (1, heads, size, 1)) for name in ("key", "value")}
        pairs = super().specs(heads, widths, dtype, size)
        return {name: replace(spec, dtype=torch.int8) for name, spec in pairs.items()} | scales


def models() -> tuple[HierMemModel, HierMemModel]:
    """A tiny model as it is, and one whose caches have eight bits."""
    plain, small = (reader(config=settings(policy="window")) for _ in range(2))
    layers = small.adapter.geometries
    small.adapter.geometries = tuple(replace(layer, cache=Int8LayerCache()) for layer in layers)
    return plain, small


@torch.no_grad()
def test_eight_bits_are_a_quarter_of_the_bytes_and_nearly_the_same_states() -> None:
    (plain, small), ids = models(), ids_of(200)
    ours, theirs = (model.new_working_memory(model.config.working) for model in (small, plain))
    found, expected = small.read_ids(ours, ids), plain.read_ids(theirs, ids)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.1)
    assert not torch.equal(found, expected)
    for cache, whole in zip(ours.caches, theirs.caches, strict=True):
        assert isinstance(cache, Int8LayerCache) and cache.keys is not None and whole.keys is not None
        assert cache.keys.dtype == torch.int8 and cache.keys.nbytes * 4 == whole.keys.nbytes
        assert cache.positions is not None and whole.positions is not None
        assert torch.equal(cache.positions, whole.positions)


@torch.no_grad()
def test_another_form_is_copied_saved_and_reordered_as_any() -> None:
    (_, model), ids = models(), ids_of(150)
    memory = model.new_working_memory(model.config.working)
    model.read_ids(memory, ids[:, :101])
    again = model.new_working_memory(model.config.working)
    again.load_state(memory.state_dict(), memory.bookkeeping(), model.dtype, model.num_embeddings)
    twin = memory.copy()
    expected = model.read_ids(memory, ids[:, 101:])
    assert torch.equal(model.read_ids(again, ids[:, 101:]), expected)
    twin.select_rows(torch.tensor([0, 0]))
    states = model.adapter.read_chunk(twin, ids[:, 101:111].expand(2, -1), [10, 10])
    torch.testing.assert_close(states[0], states[1])
