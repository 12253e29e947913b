"""Any decoder-only model of transformers over a `WorkingMemory`.

This file, `attention` and `cache` alone know the insides of transformers. While a `Backbone` is attached,
keys and values go to the working memory, which answers with everything that may be seen and the mask for it,
so layers may hold different tokens, heads may be ragged and rows may be padded. The model itself is not
changed: its attention implementation is set for the length of a `with` block and set back on any exit.

Dimension names: B batch, Q new queries.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import get_layer_types_and_kwargs

from hiermem.attention import attention_over, is_reading, reading
from hiermem.cache import BackboneCache, cache_argument
from hiermem.errors import BackboneUnsupportedError, InputError
from hiermem.memory.cache.layer import LayerCache, LayerGeometry
from hiermem.memory.cache.positions import Rotary
from hiermem.memory.hmt.module import HMTModule, SoftPrompt
from hiermem.memory.hmt.segments import SegmentRecurrence, TextSummary
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.mamba.module import MambaConfig, MambaHeads
from hiermem.memory.policies import EvictionPolicy, Namm
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig

_locks: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()


@contextmanager
def _head_inputs(model: PreTrainedModel, memory: WorkingMemory, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects, if ``wanted``, the final hidden states ``[B, n, width]`` that the model's head is given while
    ``memory`` is read."""
    states: list[Tensor] = []
    if not wanted:
        yield states
        return

    def collect(_: Any, given: tuple[Tensor, ...]) -> None:
        if is_reading(memory):  # another thread may use the model meanwhile
            states.append(given[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(collect)
    try:
        yield states
    finally:
        hook.remove()


def without_wrapper(model: Any) -> PreTrainedModel:
    """The transformers model itself, with its adapters in it, where PEFT has wrapped it.

    Raises:
        BackboneUnsupportedError: the adapter is no part of the model's layers.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise BackboneUnsupportedError(
            f"{type(model.active_peft_config).__name__} puts embeddings before the text, which hiermem does "
            f"not support: use adapters inside the layers, such as LoRA."
        )
    own = model.get_base_model()
    own._hf_peft_config_loaded = True  # transformers' own sign of adapters
    return own


class Backbone:
    """A decoder-only transformers model that reads over a `WorkingMemory`.

    Args:
        model: a causal language model whose attention goes through transformers' AttentionInterface.

    Raises:
        BackboneUnsupportedError: the model has linear-attention, chunked or shared-cache layers, or its
            attention cannot be exchanged.

    Attributes:
        model: the model itself, unchanged.
        shapes: one `LayerGeometry` per attention layer.
        mamba: what replaces some of its heads; None: nothing does.
        trained_range: number of positions the model was trained on.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config.get_text_config(decoder=True)
        if not model._can_set_attn_implementation():
            raise BackboneUnsupportedError(
                f"the attention of {type(model).__name__} cannot be exchanged: "
                f"choose a model that goes through transformers' AttentionInterface"
            )
        self._cache_argument = cache_argument(model.base_model)
        self._keeps_logits = "logits_to_keep" in signature(model.forward).parameters
        self.trained_range = _trained_range(self.config)
        windows = _windows(model, self.config)
        self.shapes = tuple(LayerGeometry(window=window) for window in windows)
        origin = self._alone(0)
        self.mamba: MambaHeads | None = None
        self.shapes = tuple(map(self._shape, windows, self._rotaries(origin), origin))

    def _shape(self, window: int | None, rotary: Rotary | None, cache: LayerCache) -> LayerGeometry:
        assert cache.keys is not None and cache.values is not None
        heads, width = cache.keys.shape[1], cache.keys.shape[3]
        queries = getattr(self.config, "num_attention_heads", 0)
        repeats = queries // heads if isinstance(queries, int) else 0
        widths = (width, cache.values.shape[3])
        return LayerGeometry(window, rotary, heads, repeats, width if width == widths[1] else 0, widths)

    def replace_heads(self, config: MambaConfig) -> MambaHeads:
        """Let Mamba heads take the place of some heads, wherever the model is read from here.

        Raises:
            InputError: there are no such groups.
            BackboneUnsupportedError: keys and values differ in width.
        """
        heads = MambaHeads(config, self.shapes)
        if any(not (self.shapes[layer].width and self.shapes[layer].repeats) for layer, _ in heads.groups):
            raise BackboneUnsupportedError(
                f"{type(self.model).__name__} has keys and values of unlike widths, or unlike numbers of "
                f"heads in its layers, which Mamba heads cannot replace"
            )
        self.mamba = heads if heads.groups else None
        return heads

    def _new_fading(self) -> MambaCache | None:
        return None if self.mamba is None else MambaCache(self.mamba)

    def new_memory(
        self,
        config: WorkingMemoryConfig,
        batch: int = 1,
        network: Namm | None = None,
        recurrence: SegmentRecurrence | None = None,
    ) -> WorkingMemory:
        """An empty working memory that fits this backbone.

        Args:
            network: what the policy `namm` scores with.
            recurrence: what is read around segments.

        Raises:
            InputError: the settings do not fit it.
        """
        if (config.trained_range or 0) > self.trained_range and not any(s.rotary for s in self.shapes):
            raise InputError(
                f"This backbone has {self.trained_range} learned positions, not {config.trained_range}: "
                f"leave trained_range out."
            )
        trained_range, policy = config.trained_range or self.trained_range, config.new_policy(network)
        return WorkingMemory(
            config, self.shapes, trained_range, batch, policy, recurrence, self._new_fading()
        )

    def whole_memory(
        self, batch: int = 1, policy: EvictionPolicy | None = None, fading: MambaCache | None = None
    ) -> WorkingMemory:
        """An empty cache that keeps everything in place, of the model with all its own heads.

        Args:
            policy: what takes note of the attention; it evicts nothing.
            fading: Mamba heads beside them.
        """
        settings = WorkingMemoryConfig(policy="none", positions="absolute")
        return WorkingMemory(settings, self.shapes, self.trained_range, batch, policy, fading=fading)

    @contextmanager
    def attached(self, memory: WorkingMemory) -> Iterator[BackboneCache]:
        """Route this thread's attention in the model through ``memory``; all is set back on any exit."""
        with _locks.setdefault(self.model, threading.RLock()), reading(memory):
            before = self.model.config._attn_implementation
            self.model.config._attn_implementation = attention_over(before)
            try:
                yield BackboneCache(memory)
            finally:
                self.model.config._attn_implementation = before

    def read_chunk(
        self,
        memory: WorkingMemory,
        input_ids: Tensor,
        valid: list[int],
        logits: int = 0,
        layers: list[tuple[Tensor, ...]] | None = None,
    ) -> Tensor:
        """Read one chunk ``input_ids [B, Q] int64`` of which each row's first ``valid`` tokens are real.

        A segment that recalls by its first half, and was begun with less than that, is read again with what
        comes: so the pieces of a text are read as the whole of it up to there.

        Args:
            logits: of how many last positions the logits are wanted.
            layers: where to add, if wanted, what goes into and comes out of every layer, ``[B, Q, width]``.

        Returns:
            the final hidden states ``[B, Q, width]``, or logits ``[B, logits, vocabulary]``.
        """
        if memory.recurrence is not None and memory.recurrence.falls_short(valid):
            return self._read_again(memory, input_ids, valid, logits, layers)
        with self.attached(memory) as cache:
            chunk = memory.begin(valid, input_ids.shape[1], input_ids.device)
            arguments: dict[str, Any] = {
                **self._inputs(memory, input_ids, valid),
                "position_ids": chunk.frames,
                self._cache_argument: cache,
                "use_cache": True,
            }
            if layers is not None:
                arguments["output_hidden_states"] = True
            if logits:
                if self._keeps_logits:
                    arguments["logits_to_keep"] = logits + chunk.tail
                with _head_inputs(self.model, memory, wanted=chunk.tail > 0) as states:
                    given = self.model(**arguments)
                output = given.logits[:, -(logits + chunk.tail) :][:, :logits]
            else:
                given = self.model.base_model(**arguments)
                states = [given.last_hidden_state]
                output = states[0][:, chunk.tokens]
            if layers is not None:
                around = chunk.lead or chunk.tail
                own = (state[:, chunk.tokens] if around else state for state in given.hidden_states)
                layers.append(tuple(own))
            if not memory.complete or cache.updates != len(memory.shapes):
                raise BackboneUnsupportedError(
                    f"{type(self.model).__name__} did not send all its layers through the working memory: "
                    f"choose a decoder-only model, and switch gradient checkpointing off"
                )
            if memory.surroundings is not None:
                ends = states[0][:, -chunk.tail :] if chunk.tail else None
                memory.surroundings.hand_on(chunk, input_ids, ends)
            memory.commit()
        return output

    def _read_again(
        self,
        memory: WorkingMemory,
        input_ids: Tensor,
        valid: list[int],
        logits: int,
        layers: list[tuple[Tensor, ...]] | None,
    ) -> Tensor:
        """The same for a chunk that goes on with segments which are read again from where they began."""
        before, Q = memory.copy(), input_ids.shape[1]
        states: list[tuple[Tensor, ...]] | None = None if layers is None else []
        try:
            begun = memory.rewind()
            rows = [torch.cat((own, new[:n])) for own, new, n in zip(begun, input_ids, valid, strict=True)]
            ids, shift = pad_sequence(rows, batch_first=True), torch.tensor([len(own) for own in begun])
            # Where each row's columns are now; those of padding do not matter.
            columns = (shift.unsqueeze(1) + torch.arange(Q)).clamp(max=ids.shape[1] - 1)
            asked = columns[:, Q - (logits or Q) :]
            first = int(asked.min()) if logits else 0
            wanted = ids.shape[1] - first if logits else 0
            output = self.read_chunk(memory, ids, [len(own) for own in rows], wanted, states)
        except BaseException:
            memory.restore(before)
            raise
        memory.columns = before.columns + Q
        if layers is not None:
            layers += [tuple(_at(state, columns) for state in own) for own in states or ()]
        return _at(output, asked - first)

    def _inputs(self, memory: WorkingMemory, input_ids: Tensor, valid: list[int]) -> dict[str, Tensor]:
        """What the model is given of a chunk: its tokens, or embeddings where more is read around them."""
        chunk, surroundings = memory.chunk, memory.surroundings
        if surroundings is None or not (chunk.lead or chunk.tail):
            return {"input_ids": input_ids}
        embed, summary, recurrence = self.model.get_input_embeddings(), None, surroundings.recurrence
        if chunk.lead and recurrence.looks_ahead:
            half = recurrence.looks_ahead
            module, first = recurrence.module, [min(count, half) for count in valid]
            summary = self.summary(module, module.summary_prompt, input_ids[:, :half], first)
        return {"inputs_embeds": surroundings.embeddings(chunk, embed(input_ids), embed, summary)}

    def summary(self, module: HMTModule, prompt: SoftPrompt, input_ids: Tensor, valid: list[int]) -> Tensor:
        """Summaries ``[B, m, d]`` of texts ``input_ids [B, n]``, of each row's first ``valid`` tokens.

        Args:
            prompt: T for S, P_0 for the memory embeddings of a document's first segment.
        """
        recurrence = TextSummary(module, prompt, len(valid), input_ids.device)
        config = WorkingMemoryConfig(policy="none", update_interval=self.trained_range, positions="compact")
        trained_range, fading = self.trained_range, self._new_fading()
        memory = WorkingMemory(config, self.shapes, trained_range, len(valid), None, recurrence, fading)
        self.read_chunk(memory, input_ids, valid)
        return torch.stack([own[-1] if own else recurrence.after()[0] for own in recurrence.past])

    def _rotaries(self, origin: list[LayerCache]) -> list[Rotary | None]:
        """How each layer rotates its keys, found by reading single tokens at two positions.

        A token alone sees itself only, so whatever the position its keys differ by the rotation, in all
        layers. None for a layer that does not rotate, and for all layers of a model with learned positions.

        Args:
            origin: what `_alone` finds at position 0.
        """
        place = min(self.trained_range, 1024) - 1
        tables = _frequency_tables(self.model)
        if not tables:
            return [None] * len(self.shapes)
        signed = [*tables, *(-table for table in tables)]
        candidates: list[Rotary | None] = [None]
        candidates += [Rotary(table, interleaved) for table in signed for interleaved in (False, True)]
        return [
            self._fitting(candidates, one, other, place)
            for one, other in zip(origin, self._alone(place), strict=True)
        ]

    def _alone(self, place: int) -> list[LayerCache]:
        """What every layer caches of a few tokens, each read alone at position ``place``."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.tensor([[1], [2], [3], [vocabulary // 2]], device=self.model.device) % vocabulary
        memory = self.whole_memory(len(ids))
        memory.seen = [place] * len(ids)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                self.read_chunk(memory, ids, [1] * len(ids))
        finally:
            self.model.train(training)
        return memory.caches

    def _fitting(
        self, candidates: list[Rotary | None], one: LayerCache, other: LayerCache, place: int
    ) -> Rotary | None:
        origin, moved = one.keys, other.keys
        assert (
            origin is not None and moved is not None and one.values is not None and other.values is not None
        )
        still = torch.allclose(one.values.float(), other.values.float(), rtol=0.05, atol=0.05)
        shift = torch.full(origin.shape[:3], place, device=origin.device)
        turned = [origin if rotary is None else rotary.turn(origin, shift) for rotary in candidates]
        errors = (
            torch.stack([(keys.float() - moved.float()).norm() for keys in turned]) / moved.float().norm()
        )
        best = int(errors.argmin())
        if not (still and errors[best] < 0.05):  # rounding alone stays far below, another rotation far above
            raise BackboneUnsupportedError(
                f"{type(self.model).__name__} rotates its keys in a way hiermem does not know: "
                f"choose a model with plain or partial rotary positions"
            )
        return candidates[best]


def _at(values: Tensor, columns: Tensor) -> Tensor:
    """Of ``values [B, n, width]`` those at ``columns [B, q]``."""
    index = columns.to(values.device).unsqueeze(-1)
    return values.gather(1, index.expand(-1, -1, values.shape[-1]))


def _trained_range(config: Any) -> int:
    """Positions the model was trained on; long-rope models are kept where their frequencies do not switch."""
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if parameters.get("rope_type") == "longrope" and "original_max_position_embeddings" in parameters:
            return int(parameters["original_max_position_embeddings"])
    known = getattr(config, "max_position_embeddings", None)
    if known is None:
        raise BackboneUnsupportedError(
            f"{type(config).__name__} does not say how many positions the model was trained on: "
            f"hiermem supports decoder-only models with attention over positions"
        )
    return int(known)


def _windows(model: PreTrainedModel, config: Any) -> list[int | None]:
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
        own.get("sliding_window") if kind == "sliding_attention" else None
        for kind, own in zip(types, per_layer, strict=True)
    ]


def _frequency_tables(model: PreTrainedModel) -> list[Tensor]:
    """The rotary frequencies that the model's modules hold, in radians per position; none where learned."""
    tables: dict[str, Tensor] = {}
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "inv_freq" or name.endswith("_attention_inv_freq"):
                tables.setdefault(name, buffer.float())
    return list(tables.values())
