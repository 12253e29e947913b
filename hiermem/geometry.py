"""The geometry of a backbone's attention: trained range, sliding windows, and how keys are rotated.

The range and the windows stand in the configuration. How keys are rotated is found by reading: a token alone
sees itself only, so whatever its position its keys differ by the rotation, in all layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.cache.rope import Rotary
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig

Read = Callable[[WorkingMemory, Tensor, list[int]], Tensor]
"""Reads a chunk through the model, as `Backbone.read_chunk`."""

TOLERANCE = 0.05
"""Rounding alone stays far below it, another rotation far above."""


class GeometryProbe:
    """Finds the geometry of a model by reading single tokens.

    Args:
        model: the causal language model.
        config: of its text part.
        read: reads a chunk through it.

    Raises:
        BackboneUnsupportedError: the model has layers, or positions, that hiermem does not support.

    Attributes:
        trained_range: number of positions the model was trained on.
    """

    def __init__(self, model: PreTrainedModel, config: Any, read: Read) -> None:
        self._model, self._config, self._read = model, config, read
        self.trained_range = trained_range_of(config)
        self._windows = windows_of(model, config)

    def geometries(self) -> tuple[LayerGeometry, ...]:
        """One for each attention layer."""
        origin = self._alone(0)
        layers = zip(self._windows, self._rotaries(origin), origin, strict=True)
        return tuple(self._geometry(window, rotary, cache) for window, rotary, cache in layers)

    def _geometry(self, window: int | None, rotary: Rotary | None, cache: LayerCache) -> LayerGeometry:
        held = cache.held()
        assert held is not None
        heads, widths = held[0].shape[1], (held[0].shape[3], held[1].shape[3])
        queries = getattr(self._config, "num_attention_heads", 0)
        repeats = queries // heads if isinstance(queries, int) else 0
        return LayerGeometry(
            window, rotary, heads, repeats, widths[0] if widths[0] == widths[1] else 0, widths
        )

    def _rotaries(self, origin: list[LayerCache]) -> list[Rotary | None]:
        """Rotation of each layer's keys; None for a layer that does not, and for all layers of a model with
        learned positions.

        Args:
            origin: what `_alone` finds at position 0.
        """
        # Far enough that slow frequencies turn visibly, near enough that float32 angles are exact.
        place = min(self.trained_range, 1024) - 1
        tables = frequency_tables(self._model)
        if not tables:
            return [None] * len(origin)
        signed = [*tables, *(-table for table in tables)]  # some models turn the other way round
        candidates: list[Rotary | None] = [None]
        candidates += [Rotary(table, interleaved) for table in signed for interleaved in (False, True)]
        pairs = zip(origin, self._alone(place), strict=True)
        return [
            self._fitting(candidates, origin_cache, moved_cache, place) for origin_cache, moved_cache in pairs
        ]

    def _alone(self, place: int) -> list[LayerCache]:
        """Caches of all layers after a few tokens, each read alone at position ``place``."""
        model = self._model
        vocabulary = model.get_input_embeddings().weight.shape[0]
        ids = torch.tensor([[1], [2], [3], [vocabulary // 2]], device=model.device) % vocabulary
        layers = tuple(LayerGeometry(window=window) for window in self._windows)
        settings = WorkingMemoryConfig(policy="none", positions="absolute")
        memory = WorkingMemory(settings, layers, self.trained_range, len(ids))
        memory.frames = memory.frames.at([place] * len(ids), memory.frames.next_frame)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                self._read(memory, ids, [1] * len(ids))
        finally:
            model.train(training)
        return memory.caches

    def _fitting(
        self, candidates: list[Rotary | None], origin_cache: LayerCache, moved_cache: LayerCache, place: int
    ) -> Rotary | None:
        """The rotation that turns what was read at position 0 into what was read at ``place``."""
        origin, moved = origin_cache.held(), moved_cache.held()
        assert origin is not None and moved is not None
        still = torch.allclose(origin[1].float(), moved[1].float(), rtol=TOLERANCE, atol=TOLERANCE)
        shift = torch.full(origin[0].shape[:3], place, device=origin[0].device)
        turned = [origin[0] if rotary is None else rotary.turn(origin[0], shift) for rotary in candidates]
        # Values carry no position: where they differ, the token has seen something else than itself.
        keys = moved[0].float()
        errors = torch.stack([(candidate.float() - keys).norm() for candidate in turned]) / keys.norm()
        best = int(errors.argmin())
        if not (still and errors[best] < TOLERANCE):
            raise BackboneUnsupportedError(
                f"{type(self._model).__name__} rotates its keys in a way hiermem does not know: "
                f"choose a model with plain or partial rotary positions"
            )
        return candidates[best]


def trained_range_of(config: Any) -> int:
    """Positions the model was trained on; long-rope models are kept where their frequencies do not switch."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") == "longrope" and "original_max_position_embeddings" in parameters:
            return int(parameters["original_max_position_embeddings"])
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        raise BackboneUnsupportedError(
            f"{type(config).__name__} does not say how many positions the model was trained on: "
            f"hiermem supports decoder-only models with attention over positions"
        )
    return int(positions)


def windows_of(model: PreTrainedModel, config: Any) -> list[int | None]:
    """Width of every layer's sliding window in tokens, None for full attention."""
    try:
        types, arguments = get_layer_types_and_kwargs(config)
    except (ValueError, AttributeError) as error:
        raise BackboneUnsupportedError(
            f"{type(model).__name__} has layers of unknown type: {error}"
        ) from error
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise BackboneUnsupportedError(
            f"{type(model).__name__} has layers of type {', '.join(sorted(unknown))}: "
            f"hiermem supports full and sliding-window attention"
        )
    per_layer = [arguments] * len(types) if isinstance(arguments, dict) else arguments  # a dict up to 5.18
    return [
        options.get("sliding_window") if kind == "sliding_attention" else None
        for kind, options in zip(types, per_layer, strict=True)
    ]


def frequency_tables(model: PreTrainedModel) -> list[Tensor]:
    """The rotary frequencies that the model's modules hold, in radians per position; none where learned."""
    tables: dict[str, Tensor] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "inv_freq" or name.endswith("_attention_inv_freq"):
                tables.setdefault(name, buffer.float())
    return list(tables.values())
