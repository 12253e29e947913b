"""A model over a working memory as transformers' generation, trainers and pipelines know models."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hiermem.arguments import asked, cache_of, check_generation, checked_input, refuse_others
from hiermem.backbone import Backbone
from hiermem.cache import CACHE_NAME, CACHE_NAMES, BackboneCache
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.losses import language_loss
from hiermem.memory.working import WorkingMemory, chunks
from hiermem.padding import Blocks, Layout, layout_of


class LanguageModel(PreTrainedModel, GenerationMixin):
    """What `HierMemModel` has in common with every causal language model of transformers.

    Attributes:
        backbone: the transformers model that is read with.
        adapter: the same, over working memories.
    """

    config_class = HierMemConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"

    backbone: PreTrainedModel
    adapter: Backbone

    def new_recurrent_memory(self, batch: int = 1) -> WorkingMemory:
        """An empty memory for inputs, as configured."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        cache: BackboneCache | None = None,
        past_key_values: BackboneCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        output_hidden_states: bool | Sequence[int] | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits and loss over an input of any length, read through the working memory.

        Args:
            input_ids: ``[B, N]`` int64.
            attention_mask: ``[B, N]`` or, with a past, ``[B, past + N]``; 0 marks padding on either side.
            position_ids: of each token in its text, ``[N]`` or ``[B, N]``. Where they begin at 0 again within
                a row, another text begins, which sees nothing of those before; ``use_cache`` must be False.
            cache: from an earlier output; reading goes on after it.
            past_key_values: the same, as transformers before 5.24 calls it.
            labels: ``[B, N]`` int64; the token that position i should predict stands at i + 1, -100 is
                ignored. The loss is the mean over all positions of the whole input.
            use_cache: whether the output has a cache; None asks the configuration. Without, a cache that was
                given stays as it is.
            logits_to_keep: how many last positions get logits; 0 means all.
            output_hidden_states: whether the output has what goes into and comes out of the layers, a tuple
                of ``[B, N, width]``; or which of them, the others being None. None asks the configuration.
            num_items_in_batch: what the summed loss is divided by in place of the number of labels, as
                transformers' Trainer wants it where gradients accumulate.
            return_dict: whether the output is an object, not a tuple; None asks the configuration.
            others: None, or outputs switched off.

        Raises:
            InputError: the input is empty, mask or positions do not fit it, no label counts, or an argument
                is unknown.
            NonFiniteError: the loss is NaN or infinite.
        """
        refuse_others(others)
        input_ids = checked_input(input_ids, attention_mask, logits_to_keep)
        past = cache_of({"cache": cache, "past_key_values": past_key_values})
        keep = self._setting("use_cache", use_cache)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        wanted = layout.wanted(logits_to_keep)
        layers: list[tuple[Tensor, ...]] = []
        states = layers if self._setting("output_hidden_states", output_hidden_states) else None
        logits = layout.take(self._read_columns(memory, layout, input_ids, wanted[1], states), wanted)
        output = CausalLMOutputWithPast(logits=logits)
        if labels is not None:
            output.loss = language_loss(logits, labels, num_items_in_batch)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory)
        if layers:
            output.hidden_states = _together(layers, layout, output_hidden_states)
        return output if self._setting("return_dict", return_dict) else output.to_tuple()

    def final_states(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: BackboneCache | None,
        use_cache: bool | None,
        others: Mapping[str, Any],
    ) -> BaseModelOutputWithPast:
        """What the head would be given, ``[B, N, width]``; arguments as those of `forward`."""
        refuse_others(others)
        input_ids = checked_input(input_ids, attention_mask)
        keep = self._setting("use_cache", use_cache)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        states = layout.take(self._read_columns(memory, layout, input_ids, None), layout.wanted(0))
        output = BaseModelOutputWithPast(last_hidden_state=states)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory)
        return output

    def _setting(self, name: str, given: bool | Sequence[int] | None) -> bool:
        """What was given, else what the configuration says; yes, where that does not know it."""
        return bool(getattr(self.config, name, True) if given is None else given)

    def _laid_out(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: BackboneCache | None,
        keep: bool,
    ) -> tuple[WorkingMemory, Layout]:
        """The memory that an input is read into, and how its texts lie in it."""
        memory = self.new_recurrent_memory() if past is None else past.memory if keep else past.memory.copy()
        seen = memory.num_tokens if any(memory.num_tokens) else None
        if seen is not None:
            memory.take_rows(len(input_ids))
        layout = layout_of(input_ids, attention_mask, position_ids, seen)
        if keep and layout.packed:
            raise InputError("Several texts in a row leave no cache to go on from: set use_cache to False.")
        memory.take_rows(len(layout.lengths))
        return memory, layout

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` for prompts of any length; arguments and results are its own.

        Raises:
            InputError: assisted decoding was asked for, which takes tokens back; or another cache.
        """
        check_generation(kwargs, generation_config, self.generation_config)
        if (positions := kwargs.pop("position_ids", None)) is not None:
            self._check_positions(kwargs.get("input_ids", inputs), kwargs.get("attention_mask"), positions)
        past = cache_of(kwargs)
        for name in CACHE_NAMES:
            kwargs.pop(name, None)
        if asked(kwargs, generation_config, self.generation_config, "use_cache") is not False:
            kwargs[CACHE_NAME] = BackboneCache(self.new_recurrent_memory()) if past is None else past
        return super().generate(inputs, generation_config, **kwargs)

    @staticmethod
    def _check_positions(input_ids: Tensor | None, attention_mask: Tensor | None, positions: Tensor) -> None:
        """Refuse positions that `generate` would not count itself."""
        if layout_of(checked_input(input_ids, attention_mask), attention_mask, positions, None).packed:
            raise InputError("generate() goes on from one text in a row: leave position_ids out.")

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers' own, without positions, which a memory counts itself, and the tokenizer."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        left_out = ("position_ids", "tokenizer", "assistant_tokenizer")
        return {name: value for name, value in inputs.items() if name not in left_out}

    def _read_columns(
        self,
        memory: WorkingMemory,
        layout: Layout,
        input_ids: Tensor,
        wanted: Tensor | None,
        layers: list[tuple[Tensor, ...]] | None = None,
    ) -> Blocks:
        """Read texts chunk by chunk; blocks of the logits of the wanted columns, or of all final states.

        Args:
            layers: where to add the states of all layers, chunk by chunk.
        """
        texts, blocks = layout.aligned(input_ids), []
        first, last = (0, -1) if wanted is None else (int(wanted.min()), int(wanted.max()))
        for at, take in chunks(memory, layout.lengths, self.config.chunk, texts.shape[1]):
            valid = [min(max(length - at, 0), take) for length in layout.lengths]
            begin = max(first, at)
            needed = max(at + take - begin, 0) if last >= at else 0
            output = self.adapter.read_chunk(memory, texts[:, at : at + take], valid, needed, layers)
            if needed or wanted is None:
                blocks.append((begin, output))
        return blocks

    # ---- weights

    def init_weights(self) -> None:
        """Nothing: the backbone has its weights, and what is hiermem's own begins by itself."""

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """Choose the backbone's own attention, which is in force where no memory is read."""
        self.backbone.set_attn_implementation(*args, **kwargs)

    @property
    def base_model(self) -> "Body":
        """The model without its head: called like the model, it gives final states in place of logits."""
        return Body(self)

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
        """Resize the backbone's embeddings and its head, with arguments and result of transformers' own."""
        return self.backbone.resize_token_embeddings(*args, **kwargs)

    @property
    def vocab_size(self) -> int:
        """Tokens that the head tells apart."""
        return int(self.config.vocab_size)


def _together(
    layers: list[tuple[Tensor, ...]], layout: Layout, chosen: bool | Sequence[int] | None
) -> tuple[Tensor | None, ...]:
    """The states of the chosen layers, by default all, from those of chunks."""
    count, everywhere = len(layers[0]), layout.wanted(0)
    wanted = {at % count for at in chosen} if isinstance(chosen, Sequence) else range(count)
    return tuple(
        layout.take([(0, own[at]) for own in layers], everywhere) if at in wanted else None
        for at in range(count)
    )


class Body(nn.Module):
    """A model without its head, as trainers want it that apply the head themselves."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        cache: BackboneCache | None = None,
        past_key_values: BackboneCache | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:
        """What the head is given, ``last_hidden_state [B, N, width]``; arguments are those of the model."""
        return self.model.final_states(
            input_ids, attention_mask, position_ids, cache_of(locals()), use_cache, others
        )
