"""`HierMemModel`: a causal language model with a hierarchy of memories around any backbone."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
)

from hiermem import (
    answering,
    asking,
    kv_prompts,
    memory_parameters,
    reading,
    restoring,
    saving,
    state_encoders,
)
from hiermem.answer import Answer
from hiermem.answer_stream import AnswerStream
from hiermem.backbone import Backbone, without_wrapper
from hiermem.chat import Chat
from hiermem.config import HierMemConfig, check_config
from hiermem.errors import InputError
from hiermem.eviction_weights import AUTO, SHIPPED, resolve_eviction_weights
from hiermem.interface import LanguageModel
from hiermem.load_options import LoadOptions
from hiermem.lora import BackboneAdapters
from hiermem.memory.hmt.module import HMTModule, SummaryConfig
from hiermem.memory.kv.prompt import KVPromptConfig
from hiermem.memory.longterm import LongTermConfig, LongTermMemory
from hiermem.memory.policies import LinearScorer, Namm
from hiermem.memory.saved import check_fingerprint
from hiermem.memory.state import MemoryState
from hiermem.memory.state_encoder import StateEncoderConfig
from hiermem.memory.tier import new_tiers
from hiermem.memory.working import WorkingMemory
from hiermem.selfcheck import check_decoding
from hiermem.text import encode

_logger = logging.getLogger(__name__)


class HierMemModel(BackboneAdapters, LanguageModel):
    """A pretrained backbone that reads documents of any length and answers from what it read.

    Example:
        >>> model = HierMemModel.from_pretrained("smollm2")
        >>> memory = model.read(text)
        >>> model.ask(memory, "Who is the captain?").text

    Attributes:
        backbone: the transformers model; its weights and its code are not changed.
        tokenizer: the backbone's tokenizer, or None where only token ids are used.
        namm: the network behind the policy `namm`, float32 whatever the backbone's dtype.
        scorer: the weights of the policy `linear`, float32; 0 where nobody has fitted them.
        summary: the parameters of the memory embeddings, float32; None where they are off.
        mamba: the Mamba heads, float32; empty where no head is replaced.
        kv_prompt: the trained prompt in front of recalled keys and values, float32; None: there is none.
        state_encoder: makes sentence embeddings of the backbone's states, float32; None: there is none.
        name_or_path: what it was loaded by, a folder as an absolute path; memories name it.
    """

    def __init__(self, config: HierMemConfig, backbone: PreTrainedModel, tokenizer: Any = None) -> None:
        check_config(config)
        evictor = resolve_eviction_weights(config.evictor, config.backbone, config.working.policy)
        super().__init__(copy(config) if evictor is None else config.with_evictor(evictor))  # its own
        config = self.config
        if config.evictor == SHIPPED:
            config.evictor = AUTO
        self.backbone = backbone = without_wrapper(backbone)
        config.show(backbone.config.get_text_config(decoder=True))
        self.tokenizer = tokenizer
        self.adapter = Backbone(backbone)
        self.namm = Namm(config.namm)
        if evictor is not None and evictor.network is not None:
            self.namm.load_state_dict(evictor.network)
            if evictor.lender is not None:
                _logger.warning("NAMM scores with the network that ships for %s.", evictor.lender)
        self.scorer = LinearScorer(self.adapter.geometries)
        if evictor is not None and evictor.linear is not None:
            self.scorer.take(evictor.linear)
        self.mamba = self.adapter.replace_heads(config.mamba)
        self.summary = self._new_summary()
        config.summary = SummaryConfig(0) if self.summary is None else self.summary.config
        self.kv_prompt = kv_prompts.of_backbone(config, self.adapter.geometries)
        config.kv_prompt = KVPromptConfig(0 if self.kv_prompt is None else self.kv_prompt.num_tokens)
        width = backbone.get_input_embeddings().weight.shape[1]
        self.state_encoder = state_encoders.of_backbone(config, len(self.adapter.geometries), width)
        config.state_encoder = self.state_encoder.config if self.state_encoder else StateEncoderConfig([])
        self.loaded_weights = None
        self.post_init()
        self.generation_config = GenerationConfig()
        with self.inference():
            check_decoding(self.reader, self.generate)
        self.generation_config = deepcopy(backbone.generation_config)
        self.generation_config.cache_implementation = None  # the memory takes its place

    def _new_summary(self) -> HMTModule | None:
        config = self.config.summary
        if not config.tokens:
            return None
        embeddings, text = self.backbone.get_input_embeddings().weight, config.init_text
        ids = encode(self.tokenizer, text) if self.tokenizer and text else []
        summary = HMTModule(config, embeddings.shape[1])
        summary.start(embeddings, torch.tensor(ids, dtype=torch.int64))
        return summary

    def add_summary(self, config: SummaryConfig) -> None:
        """Give the model memory embeddings, still untrained (HMT), in place of any that it has."""
        self.config.summary = config
        summary = self._new_summary()
        self.summary = None if summary is None else summary.to(self.device)

    # ---- loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        config: HierMemConfig | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **options: Any,
    ) -> "HierMemModel":
        """Load a plain backbone, a folder that `save_pretrained` wrote, or a bundled model.

        Args:
            name_or_path: hub id, folder, GGUF file (`*.gguf`, converted once into the cache; its `revision`
                is its SHA-256), or the name of a bundled model (`smollm2`).
            config: settings of the memories; the default is the preset `full`, or what the folder holds.
            dtype: of the backbone; the default is its own, or float32 on a processor without bf16.
            device: where to compute; the default is a GPU if there is one.
            options: as transformers has them: `revision`, `token`, `cache_dir`, `force_download`,
                `local_files_only`, `proxies` and `subfolder` say where files come from;
                `attn_implementation`, `device_map`, `low_cpu_mem_usage`, `max_memory`, `offload_folder`,
                `quantization_config`, `use_safetensors` and `variant` go to the backbone. Weights come from
                safetensors unless `use_safetensors=False`. Code that a model brings along runs only with
                `trust_remote_code=True`.

        Raises:
            InputError: there is no such model, it is damaged or of a newer format, it brings code along, or
                an option is unknown.
            BackboneUnsupportedError: its attention cannot run over a working memory, or it was spread over
                several devices.
        """
        return restoring.load(cls, name_or_path, config, LoadOptions.of(dtype, device, options))

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        safe_serialization: bool = True,
        **hub: Any,
    ) -> None:
        """Write configuration, memory parameters, adapters, tokenizer and card; the backbone by name, or its
        weights where they are no longer those of that name.

        The folder holds the old model or the new one, whenever this ends. Other files in it stay.

        Args:
            is_main_process: False writes nothing.
            state_dict: what is saved in place of the model's own state.
            push_to_hub: upload it then; ``hub`` says where to: `repo_id`, `token`, `private`, `revision`,
                `commit_message`, `commit_description`, `create_pr`.
            max_shard_size: of a file with weights.

        Raises:
            InputError: the folder holds another model, which this would overwrite; something of the backbone
                could not be loaded again; an option is unknown; the disk refused.
        """
        if not safe_serialization:
            raise InputError("hiermem saves safetensors alone: leave safe_serialization out.")
        options = saving.PushOptions.of(hub)
        if hub and not push_to_hub:
            raise InputError(f"{sorted(hub)[0]} is for uploading: set push_to_hub, or leave it out.")
        if is_main_process:
            saving.save(self, save_directory, state_dict, max_shard_size)
            if push_to_hub:
                saving.push(save_directory, options)

    def push_to_hub(self, repo_id: str, *, max_shard_size: int | str = "50GB", **hub: Any) -> str:
        """Save and upload; where it is then. Options as in `save_pretrained`."""
        return saving.save_and_push(self, repo_id, max_shard_size, hub)

    def memory_parameters(self) -> dict[str, Tensor]:
        """The parameters that are hiermem's own and in use, by name, contiguous and on the CPU."""
        return memory_parameters.memory_parameters(self, self.state_dict())

    def load_memory_parameters(self, parameters: dict[str, Tensor]) -> None:
        """Take over parameters from `memory_parameters`.

        Those that this configuration has switched off are left aside; the search may be still to be fitted,
        and NAMM's network to be added.

        Raises:
            InputError: names are missing or unknown, shapes differ, or values are not finite.
        """
        memory_parameters.load_memory_parameters(self, parameters)

    # ---- reading and asking

    def read(
        self,
        source: reading.DocumentInput,
        memory: MemoryState | None = None,
        progress: bool = True,
        checkpoint: Callable[[], None] | None = None,
    ) -> MemoryState:
        """Read a document of any length in constant memory.

        Args:
            source: a text, the `pathlib.Path` of a text, Markdown, HTML, PDF, EPUB or DOCX file, a
                `hiermem.documents.Document`, an iterable of pieces of one text, or token ids.
            memory: where to go on; None begins a new document. It is changed in place and returned. Whatever
                stops reading, Ctrl-C at any moment included, leaves it where reading can go on.
            progress: show a progress bar on long work, where the error stream is a terminal.
            checkpoint: called after every chunk, when ``memory`` holds all that was read; to save it, say.

        Raises:
            InputError: the document is empty, or no text, the model has no tokenizer, or ``memory`` was only
                indexed.
            NonFiniteError: the backbone produced NaN or infinity; the segment is named.
            MemoryIncompatibleError: ``memory`` belongs to another model.
        """
        return self._gone_on(source, memory, progress, checkpoint, index=False)

    def index(
        self,
        source: reading.DocumentInput,
        memory: MemoryState | None = None,
        progress: bool = True,
        checkpoint: Callable[[], None] | None = None,
    ) -> MemoryState:
        """Make the memory of a document without the backbone: tokens and search keys alone, much faster.

        By default `ask` answers as after `read`: passages are found by search keys and read as text. There is
        no working memory, so ``memory.working`` is refused, and with it what needs one: `ask` with
        `asking.working` or without recall, and to go on with `read`.

        Args:
            source: as of `read`.
            memory: as of `read`; one that was only indexed.
            progress: as of `read`.
            checkpoint: called after every segment, when ``memory`` holds all that was indexed.

        Raises:
            InputError: the document is empty, or no text; the model has no tokenizer; ``memory`` was read, or
                keeps what the backbone makes: further tiers, memory embeddings.
            MemoryIncompatibleError: ``memory`` belongs to another model.
        """
        return self._gone_on(source, memory, progress, checkpoint, index=True)

    def _gone_on(
        self,
        source: reading.DocumentInput,
        memory: MemoryState | None,
        progress: bool,
        checkpoint: Callable[[], None] | None,
        index: bool,
    ) -> MemoryState:
        if self.tokenizer is None:
            raise InputError("This model has no tokenizer: pass one to HierMemModel, or use forward().")
        memory = self._checked(memory) if memory is not None else self.new_memory(index)
        if index and not memory.tokens and (memory.longterm.reads_states or memory.recurrent):
            empty = self.new_memory(index)
            memory.moment, memory.fingerprint = empty.moment, empty.fingerprint
        with self.inference():
            reading.read(self.reader, source, memory, progress, checkpoint, index=index)
        return memory

    @overload
    def ask(
        self,
        memory: MemoryState,
        question: str,
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: Literal[False] = False,
    ) -> Answer: ...

    @overload
    def ask(
        self,
        memory: MemoryState,
        question: str,
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: Literal[True],
    ) -> AnswerStream: ...

    @overload
    def ask(
        self,
        memory: MemoryState,
        question: list[str] | tuple[str, ...],
        top_k: int | None = None,
        max_new_tokens: int = 64,
    ) -> list[Answer]: ...

    def ask(
        self,
        memory: MemoryState,
        question: str | list[str] | tuple[str, ...],
        top_k: int | None = None,
        max_new_tokens: int = 64,
        *,
        stream: bool = False,
    ) -> Answer | AnswerStream | list[Answer]:
        """Answer a question from a memory, in which what was read stays as it is.

        Args:
            question: one, or a list: these are answered in padded batches, each as it is alone but for
                rounding.
            top_k: segments to recall; None takes the configured number.
            max_new_tokens: length limit of the answer.
            stream: give the text of one answer piece by piece as it is decoded (`AnswerStream`).

        Raises:
            InputError: the question is empty, a number is negative, or several answers are to be streamed.
            MemoryIncompatibleError: ``memory`` belongs to another model.
        """
        return answering.ask(self, partial(self.prepare, memory), question, top_k, max_new_tokens, stream)

    def chat(self, memory: MemoryState) -> Chat:
        """A conversation about what a memory has read: earlier turns count in what a question means.

        Raises:
            MemoryIncompatibleError: ``memory`` belongs to another model.
        """
        return Chat(self, self._checked(memory))

    def prepare(self, memory: MemoryState, question: str, top_k: int | None = None) -> asking.PreparedPrompt:
        """The prompt that `ask` answers: recalled passages, then the question."""
        return asking.prepare(self, self._checked(memory), question, top_k)

    def new_memory(self, index: bool = False) -> MemoryState:
        """The memory of a document of which nothing has been read.

        Args:
            index: it will be indexed: without what the backbone makes, search keys of its states and memory
                embeddings that none is made of.
        """
        settings, segment = self.longterm_config(index), self.config.segment
        recurrent = not index or bool(self.config.summary.search)
        working = self.new_working_memory(self.config.working, recurrent=recurrent)
        longterm = LongTermMemory(settings, self.summary, self.state_encoder)
        tiers, fingerprint = new_tiers(settings.tiers), self.fingerprint(recurrent=recurrent)
        return MemoryState(working, longterm, segment, fingerprint, self.name_or_path, tiers)

    def longterm_config(self, index: bool = False) -> LongTermConfig:
        """Settings of the long-term memory of a new memory; ``index``: see there."""
        settings = self.config.longterm
        return settings.without_states() if index or self.state_encoder is None else settings

    @property
    def search_keys(self) -> dict[str, dict[str, Any]]:
        """Settings of the search keys that it is configured with."""
        return self.config.longterm.keys

    @contextmanager
    def inference(self) -> Iterator[None]:
        """A context with neither gradients nor dropout."""
        training = [module for module in self.modules() if module.training]
        try:
            for module in training:
                module.training = False
            with torch.inference_mode():
                yield
        finally:
            for module in training:
                module.training = True

    def _checked(self, memory: MemoryState) -> MemoryState:
        if not isinstance(memory, MemoryState):
            raise InputError(
                f"A memory is what read() returns or MemoryState.load() loads, not {type(memory).__name__}."
            )
        present = self.fingerprint(memory.working_config.policy, recurrent=memory.recurrent)
        check_fingerprint(memory.fingerprint, present, "This memory")
        if memory.longterm.reads_states:
            states = {} if self.state_encoder is None else {"states": self.state_encoder.digest}
            check_fingerprint({"states": memory.longterm.states_digest}, states, "This memory")
        return memory

    def __repr__(self) -> str:
        working, count = self.config.working, sum(weight.numel() for weight in self.backbone.parameters())
        dtype, name = str(self.dtype).removeprefix("torch."), type(self.backbone).__name__
        return (
            f"HierMemModel({self.name_or_path!r}, {name} of {count / 1e6:.1f} million parameters, {dtype} on "
            f"{self.device}, policy {working.policy}, budget {working.budget}; see backbone for its modules)"
        )

    # ---- reading below documents

    def compile(self, **options: Any) -> None:
        """Let `torch.compile` make graphs of reading; see `hiermem.backbone.Backbone.compile`.

        Args:
            options: of `torch.compile`; on a GPU, ``mode="reduce-overhead"`` makes CUDA graphs.

        Raises:
            InputError: no chunk of these settings would come again in the same shape.
        """
        working = self.config.working
        policy = working.new_policy()
        if self.config.chunk < working.update_interval or not (policy.evicts or policy.clears_cache):
            raise InputError(
                "Graphs are of whole intervals over a cache of one size: read with a policy that evicts, and "
                "a chunk of at least update_interval."
            )
        self.adapter.compile(**options)

    def read_ids(self, memory: WorkingMemory, ids: Tensor) -> Tensor:
        """Read ``ids [1, n]``; returns the last chunk's final hidden states (`Reader.read`)."""
        return self.reader.read(memory, ids)

    def continue_from(self, memory: WorkingMemory, ids: Tensor, max_new_tokens: int) -> tuple[str, bool]:
        """Greedy continuation of ``ids [1, n]`` after what ``memory`` holds; ``memory`` moves on.

        Returns the text, and whether it ended by itself (`Reader.greedy`).
        """
        return self.reader.continue_from(memory, ids, max_new_tokens)

    def summarise(self, text: str) -> Tensor:
        """Summary ``[m, d]`` of a question (`Reader.summarise`)."""
        return self.reader.summarise(text)

    def embed(self, text: str) -> Tensor:
        """Memory embeddings ``[m, d]`` of a text (`Reader.embed`)."""
        return self.reader.embed(text)


AutoModelForCausalLM.register(HierMemConfig, HierMemModel)
