"""Any decoder-only model of transformers over a `WorkingMemory`.

This file, `attention`, `cache` and `geometry` alone know the insides of transformers. While a `Backbone` is
attached, queries, keys and values go to the working memory, which answers with the output of attention: so
layers may hold different tokens, heads may be ragged and rows may be padded. Of the memory the adapter calls
`begin`, `attend` and `commit`. The model itself is not changed: its attention implementation is set for the
length of a `with` block and set back on any exit.

Dimension names: B batch, Q new queries.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hiermem.attention import attention_over, is_reading, reading, tracing
from hiermem.cache import ChunkCache, cache_argument
from hiermem.errors import BackboneUnsupportedError, InputError
from hiermem.geometry import GeometryProbe
from hiermem.memory.chunk import Chunk
from hiermem.memory.chunk_state import ChunkState
from hiermem.memory.hmt.module import HMTModule, SoftPrompt
from hiermem.memory.hmt.segments import SegmentRecurrence, TextSummary
from hiermem.memory.mamba.cache import MambaCache
from hiermem.memory.mamba.module import MambaConfig, MambaHeads
from hiermem.memory.policies import EvictionPolicy
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig

_locks: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()


@contextmanager
def _head_inputs(model: PreTrainedModel, memory: WorkingMemory, collected: bool) -> Iterator[list[Tensor]]:
    """If ``collected``, a list of the final hidden states ``[B, n, width]`` that the model's head is given
    while ``memory`` is read."""
    states: list[Tensor] = []
    if not collected:
        yield states
        return

    def collect(_: Any, inputs: tuple[Tensor, ...]) -> None:
        if is_reading(memory):  # another thread may use the model meanwhile
            states.append(inputs[0])

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
    inner = model.get_base_model()
    inner._hf_peft_config_loaded = True  # transformers' own sign of adapters
    return inner


class Backbone:
    """A decoder-only transformers model that reads over a `WorkingMemory`.

    Args:
        model: a causal language model whose attention goes through transformers' AttentionInterface.

    Raises:
        BackboneUnsupportedError: the model has linear-attention, chunked or shared-cache layers, or its
            attention cannot be exchanged.

    Attributes:
        model: the model itself, unchanged.
        geometries: one `LayerGeometry` per attention layer.
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
        self.mamba: MambaHeads | None = None
        self._compiled_step: Callable[..., tuple[Tensor, tuple[Tensor, ...]]] | None = None
        probe = GeometryProbe(model, self.config, self.read_chunk)
        self.trained_range = probe.trained_range
        self.geometries = probe.geometries()

    def replace_heads(self, config: MambaConfig) -> MambaHeads:
        """Let Mamba heads take the place of some heads, wherever the model is read from here.

        Raises:
            InputError: there are no such groups.
            BackboneUnsupportedError: keys and values differ in width.
        """
        heads = MambaHeads(config, self.geometries)
        if any(
            not (self.geometries[layer].width and self.geometries[layer].repeats) for layer, _ in heads.groups
        ):
            raise BackboneUnsupportedError(
                f"{type(self.model).__name__} has keys and values of unlike widths, or unlike numbers of "
                f"heads in its layers, which Mamba heads cannot replace"
            )
        self.mamba = heads if heads.groups else None
        return heads

    def new_memory(
        self,
        config: WorkingMemoryConfig,
        batch: int = 1,
        network: nn.Module | None = None,
        recurrence: SegmentRecurrence | None = None,
    ) -> WorkingMemory:
        """An empty working memory that fits this backbone.

        Args:
            network: what the policy scores with; None: nothing of its own.
            recurrence: what is read around segments.

        Raises:
            InputError: the settings do not fit it.
        """
        if (config.trained_range or 0) > self.trained_range and not any(s.rotary for s in self.geometries):
            raise InputError(
                f"This backbone has {self.trained_range} learned positions, not {config.trained_range}: "
                f"leave trained_range out."
            )
        trained_range, policy = config.trained_range or self.trained_range, config.new_policy(network)
        recurrent: list[ChunkState] = [] if recurrence is None else [recurrence]
        recurrent += [] if self.mamba is None else [MambaCache(self.mamba)]
        memory = WorkingMemory(config, self.geometries, trained_range, batch, policy, recurrent)
        memory.cache.fixed_shapes = self.compiled
        return memory

    def whole_memory(
        self,
        batch: int = 1,
        policy: EvictionPolicy | None = None,
        mamba: MambaCache | None = None,
        interval: int = 512,
    ) -> WorkingMemory:
        """An empty cache that keeps everything in place, of the model with all its own heads.

        Args:
            policy: what takes note of the attention; it evicts nothing.
            mamba: Mamba heads in place of some of them.
            interval: tokens after which what has left a sliding window goes.
        """
        settings = WorkingMemoryConfig(policy="none", positions="absolute", update_interval=interval)
        recurrent = [] if mamba is None else [mamba]
        return WorkingMemory(settings, self.geometries, self.trained_range, batch, policy, recurrent)

    @contextmanager
    def attached(self, memory: WorkingMemory) -> Iterator[None]:
        """Route this thread's attention in the model through ``memory``; all is set back on any exit."""
        with _locks.setdefault(self.model, threading.RLock()), reading(memory):
            before = self.model.config._attn_implementation
            self.model.config._attn_implementation = attention_over(before)
            try:
                yield
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

        Args:
            logits: of how many last positions the logits are wanted.
            layers: where to add, if wanted, what goes into and comes out of every layer, ``[B, Q, width]``.

        Returns:
            the final hidden states ``[B, Q, width]``, or logits ``[B, logits, vocabulary]``.
        """
        if self.compiled and memory.listener is not None:
            raise InputError(
                "A compiled backbone does not tell tiers what it reads: leave the tier out, or compile()."
            )
        with self.attached(memory):
            try:  # also within `begin`, which may read a text of its own and run out of memory
                chunk = memory.begin(input_ids, valid, self)
                output, states = self._step(memory, chunk, chunk.needed(logits), layers is not None)
            except BaseException:
                memory.rollback()
                raise
        if layers is not None:
            layers.append(tuple(chunk.answer(state) for state in states))
        return chunk.answer(output, logits)

    def _step(
        self, memory: WorkingMemory, chunk: Chunk, logits: int, layers: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`step`, compiled where that is wanted and serves more chunks than this one."""
        if self._compiled_step is None or not memory.settled(chunk):
            return self.step(memory, chunk, logits, layers)
        torch.compiler.cudagraph_mark_step_begin()
        output, states = self._compiled_step(self, memory, chunk, logits, layers)
        if chunk.ids.is_cuda:  # the next run of a CUDA graph writes where this one did
            memory.own()
            output, states = output.clone(), tuple(state.clone() for state in states)
        return output, states

    def step(
        self, memory: WorkingMemory, chunk: Chunk, logits: int = 0, layers: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One chunk through the model: from its tensors and those of the memory to the memory's next ones.

        Nothing here depends on the chunk's place in the document but through tensors. Once the cache is full,
        one compiled step serves each kind of chunk (`compile`).

        Args:
            chunk: what `WorkingMemory.begin` made of it.
            logits: of how many last tokens the logits are wanted.
            layers: whether the states of all layers are wanted.

        Returns:
            the final hidden states ``[B, Q, width]``, or logits ``[B, logits, vocabulary]``, and the states
            of all layers, if wanted.
        """
        # It counts the layers that ask, and says nothing of the document's length.
        cache = ChunkCache(len(memory.geometries))
        arguments: dict[str, Any] = {
            "position_ids": chunk.position_ids,
            self._cache_argument: cache,
            "use_cache": True,
        }
        if chunk.embeddings is None:
            arguments["input_ids"] = chunk.ids
        else:
            arguments["inputs_embeds"] = chunk.embeddings
        if layers:
            arguments["output_hidden_states"] = True
        with tracing(memory):
            output, hidden, every = self._run(memory, chunk, logits, arguments)
        if not memory.complete or cache.updates != len(memory.geometries):
            raise BackboneUnsupportedError(
                f"{type(self.model).__name__} did not send all its layers through the working memory: "
                f"choose a decoder-only model, and switch gradient checkpointing off"
            )
        memory.commit(hidden)
        return output, tuple(state[:, chunk.tokens] if chunk.around else state for state in every)

    def _run(
        self, memory: WorkingMemory, chunk: Chunk, logits: int, arguments: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """The wanted output, final states of the last columns, and the states of all layers, if asked for."""
        if not logits:
            found = self.model.base_model(**arguments)
            hidden = found.last_hidden_state
            return hidden[:, chunk.tokens], hidden, found.hidden_states or ()
        last = logits + chunk.suffix  # the suffix has logits that nobody wants
        if self._keeps_logits:
            arguments["logits_to_keep"] = last
        with _head_inputs(self.model, memory, collected=chunk.suffix > 0) as states:
            found = self.model(**arguments)
        return found.logits[:, -last:][:, :logits], states[0] if states else None, found.hidden_states or ()

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compiled_step is not None

    def compile(self, **options: Any) -> None:
        """Let `torch.compile` make one graph of the step for each kind of chunk that comes again and again:
        whole intervals, once the cache is full. All others are read as before.

        Kinds differ in whether a segment begins or ends, an eviction is due and the position frame moves.
        Memories that are made from here on keep as many slots as the budget allows at every eviction, empty
        ones among them.

        Args:
            options: of `torch.compile`; on a GPU, ``mode="reduce-overhead"`` makes CUDA graphs.
        """
        # Of the class, not of this object: a deep copy of the model computes with its own parameters.
        self._compiled_step = torch.compile(
            type(self).step, **({"fullgraph": True, "dynamic": False} | options)
        )

    def embed(self, ids: Tensor) -> Tensor:
        """The model's input embeddings ``[B, n, d]`` of token ids ``[B, n]``."""
        embeddings: Tensor = self.model.get_input_embeddings()(ids)
        return embeddings

    def summary(self, module: HMTModule, prompt: SoftPrompt, input_ids: Tensor, valid: list[int]) -> Tensor:
        """Summaries ``[B, m, d]`` of texts ``input_ids [B, n]``, of each row's first ``valid`` tokens.

        Args:
            prompt: T for S, P_0 for the memory embeddings of a document's first segment.
        """
        recurrence = TextSummary(module, prompt, len(valid), input_ids.device)
        config = WorkingMemoryConfig(policy="none", update_interval=self.trained_range, positions="compact")
        memory = self.new_memory(config, len(valid), recurrence=recurrence)
        self.read_chunk(memory, input_ids, valid)
        left = zip(recurrence.memory_embeddings, recurrence.suffix_embeddings(), strict=True)
        return torch.stack([prompt if embeddings is None else embeddings[-1] for embeddings, prompt in left])
