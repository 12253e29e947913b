"""`HierMemPreTrainedModel`: a backbone with the parameters of its memories, as one model of transformers."""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hiermem import lora
from hiermem.backbone import Backbone
from hiermem.config import HierMemConfig
from hiermem.decoding import end_tokens
from hiermem.errors import InputError
from hiermem.eviction_weights import EvictionWeights
from hiermem.fingerprint import WeightsDigest, backbone_hash, tokenizer_hash
from hiermem.half_weights import HalfLinear
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.kv.prompt import KVPrompt
from hiermem.memory.mamba.module import MambaConfig, MambaHeads
from hiermem.memory.policies import LinearPolicy, LinearScorer, Namm, NammPolicy
from hiermem.memory.state_encoder import StateEncoder
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.quantization import quantization_of
from hiermem.reader import Reader


class HierMemPreTrainedModel(PreTrainedModel):
    """The parts of a `HierMemModel`; its weights, where transformers asks for them, are the backbone's.

    Attributes:
        backbone: the transformers model that is read with.
        adapter: the same, over working memories.
        tokenizer: the backbone's; None where only token ids are used.
        namm: network of the policy `namm`.
        scorer: weights of the policy `linear`; 0 where there are none.
        summary: parameters of the memory embeddings; None where they are off.
        mamba: the Mamba heads; empty where no head is replaced.
        kv_prompt: what stands before recalled keys and values; None: no trained one.
        state_encoder: what makes sentence embeddings of the backbone's states; None: there is none.
        loaded_weights: tells whether the backbone is still what its name stands for; None: it has no name.
    """

    config_class = HierMemConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"

    backbone: PreTrainedModel
    adapter: Backbone
    tokenizer: Any
    namm: Namm
    scorer: LinearScorer
    summary: HMTModule | None
    mamba: MambaHeads
    kv_prompt: KVPrompt | None
    state_encoder: StateEncoder | None
    loaded_weights: WeightsDigest | None

    # ---- reading

    @property
    def reader(self) -> Reader:
        """The same parts as they are now, as a reader of token ids."""
        ends = end_tokens(self.generation_config, self.config, self.tokenizer)
        return Reader(
            self.adapter,
            self.tokenizer,
            self.config.chunk,
            self.config.segment,
            {NammPolicy.name: self.namm, LinearPolicy.name: self.scorer},
            self.summary,
            ends,
            self.kv_prompt,
            self.state_encoder,
        )

    def new_working_memory(
        self,
        config: WorkingMemoryConfig,
        batch: int = 1,
        *,
        recurrent: bool = False,
        segment: int | None = None,
    ) -> WorkingMemory:
        """An empty working memory for this backbone; see `Reader.new_working_memory`."""
        return self.reader.new_working_memory(config, batch, recurrent=recurrent, segment=segment)

    def new_recurrent_memory(self, batch: int = 1) -> WorkingMemory:
        """An empty working memory as configured, with HMT's recurrence where the model has one."""
        return self.new_working_memory(self.config.working, batch, recurrent=True)

    def replace_heads(self, config: MambaConfig) -> None:
        """Put Mamba heads, still untrained, in the place of attention heads (RecurFormer).

        Raises:
            InputError: there are no such heads, or no others would be left.
        """
        self.mamba = self.adapter.replace_heads(config).to(self.device)
        self.config.mamba = config

    def fingerprint(self, policy: str | None = None, recurrent: bool = True) -> dict[str, str]:
        """Hashes that a memory must match: of backbone with geometry and active adapters, tokenizer, dtype,
        quantization, summaries, Mamba heads and the policy's network; computed anew every time.

        Args:
            policy: of the memory's working memory, whose network counts. None: the model's.
            recurrent: whether the memory has memory embeddings, for which the summaries count.
        """
        hashes = {
            "backbone": backbone_hash(self.backbone, self.adapter),
            "tokenizer": tokenizer_hash(self.tokenizer),
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if (quantization := quantization_of(self.backbone)) is not None:
            hashes["quantization"] = quantization
        if recurrent and self.summary is not None:
            hashes["summaries"] = self.summary.digest
        if self.mamba.groups:
            hashes["Mamba heads"] = self.mamba.digest
        if (state := lora.unusual_state(self.backbone)) is not None:
            hashes["choice of adapters"] = state
        if (policy := policy or self.config.working.policy) == LinearPolicy.name:
            hashes["network"] = self.scorer.digest
        if policy == NammPolicy.name:
            hashes["network"] = EvictionWeights(None, self.namm.state_dict(), self.config.namm).digest
        return hashes

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor where the model computes."""
        return tensor.to(self.device)

    # ---- weights

    def init_weights(self) -> None:
        """Nothing: the backbone has its weights, and what is hiermem's own begins by itself."""

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Choose the backbone's own attention, which is in force where no memory is read."""
        self.backbone.set_attn_implementation(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's."""
        self.backbone.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The backbone's head."""
        return self.backbone.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the backbone's head."""
        self.backbone.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the backbone's embeddings and its head, with arguments and result of transformers' own.

        Raises:
            InputError: they are quantised.
        """
        if isinstance(self.get_output_embeddings(), HalfLinear):
            raise InputError("A head in float16 keeps its size: load the model without that quantization.")
        return self.backbone.resize_token_embeddings(*args, **kwargs)

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding matrix: token ids are smaller."""
        return self.reader.num_embeddings

    @property
    def vocab_size(self) -> int:
        """Tokens that the head tells apart."""
        return int(self.config.vocab_size)
