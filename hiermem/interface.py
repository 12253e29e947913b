"""A model over a working memory as transformers' generation, trainers and pipelines know models."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hiermem.arguments import cache_of, check_generation, checked_input, generation_setting, is_assisted
from hiermem.cache import CACHE_NAME, CACHE_NAMES, BackboneCache, LastInput
from hiermem.errors import InputError
from hiermem.losses import language_loss
from hiermem.memory.working import WorkingMemory
from hiermem.padding import Block, Layout, layout_of
from hiermem.pretrained import HierMemPreTrainedModel

_Layers = list[tuple[Tensor, ...]]
"""States between the layers, ``[T, q, width]`` each, of one chunk after the other."""


class LanguageModel(HierMemPreTrainedModel, GenerationMixin):
    """A causal language model over a working memory, with transformers' arguments and results."""

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
        """Logits and loss over an input of any length; switches that are None ask the configuration.

        Args:
            input_ids: ``[B, N]`` int64.
            attention_mask: ``[B, N]`` or, with a past, ``[B, past + N]``; 0 marks padding on either side.
            position_ids: of each token in its text, ``[N]`` or ``[B, N]``. Where they begin at 0 again within
                a row, another text begins, which sees nothing of those before; ``use_cache`` must be False.
            cache: from an earlier output; reading goes on after it.
            past_key_values: another name of the same.
            labels: ``[B, N]`` int64; what position i should predict stands at i + 1, -100 is ignored.
            use_cache: whether the output has a cache; without, one that was given stays as it is.
            logits_to_keep: how many last positions get logits; 0 means all.
            output_hidden_states: whether, or of which layers, there are states ``[B, N, width]``, else None.
            num_items_in_batch: divisor of the summed loss; None: the number of labels.
            return_dict: whether the output is an object, not a tuple.

        Raises:
            InputError: an argument is unknown or does not fit the input, which is empty, or no label counts.
            NonFiniteError: the loss is NaN or infinite.
        """
        input_ids = checked_input(input_ids, attention_mask, logits_to_keep, others)
        past = cache_of({"cache": cache, "past_key_values": past_key_values})
        keep = self._setting("use_cache", use_cache)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        layers: _Layers | None = [] if self._setting("output_hidden_states", output_hidden_states) else None
        places, first = layout.places(logits_to_keep), 0
        if keep and past is not None and past.recording and layout.is_one_text:
            first = self._record(past, input_ids, logits_to_keep, layers)
        logits = layout.take(self._read_columns(memory, layout, input_ids, places[1], layers, first), places)
        output = CausalLMOutputWithPast(logits=logits)
        if labels is not None:
            output.loss = language_loss(logits, labels, num_items_in_batch)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory) if past is None else past
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
        """Final hidden states ``[B, N, width]``, which the head would be given; arguments as of `forward`."""
        input_ids = checked_input(input_ids, attention_mask, others=others)
        keep = self._setting("use_cache", use_cache)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        states = layout.take(self._read_columns(memory, layout, input_ids, None), layout.places(0))
        output = BaseModelOutputWithPast(last_hidden_state=states)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory) if past is None else past
        return output

    def _setting(self, name: str, value: bool | Sequence[int] | None) -> bool:
        """The value of an argument, else that of the configuration; yes, where it does not know the name."""
        return bool(getattr(self.config, name, True) if value is None else value)

    def _laid_out(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past: BackboneCache | None,
        keep: bool,
    ) -> tuple[WorkingMemory, Layout]:
        """The memory that an input is read into, which has read all before, and how its texts lie in it."""
        if past is not None:
            self._settle(past)
        memory = self.new_recurrent_memory() if past is None else past.memory if keep else past.memory.copy()
        num_tokens = memory.num_tokens if any(memory.num_tokens) else None
        if num_tokens is not None:
            memory.take_rows(len(input_ids))
        layout = layout_of(input_ids, attention_mask, position_ids, num_tokens)
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
            InputError: drafts are to come from a model's own layers or memory, or go with a padded prompt; or
                another cache.
        """
        check_generation(kwargs, generation_config, self.generation_config)
        if isinstance(kwargs.get("assistant_model"), LanguageModel):
            raise InputError("A model with a memory cannot assist: give its backbone as assistant_model.")
        if (positions := kwargs.pop("position_ids", None)) is not None:
            self._check_positions(kwargs.get("input_ids", inputs), kwargs.get("attention_mask"), positions)
        past = cache_of(kwargs)
        for name in CACHE_NAMES:
            kwargs.pop(name, None)
        if generation_setting(kwargs, generation_config, self.generation_config, "use_cache") is False:
            return super().generate(inputs, generation_config, **kwargs)
        cache = kwargs[CACHE_NAME] = BackboneCache(self.new_recurrent_memory()) if past is None else past
        if not is_assisted(kwargs, generation_config, self.generation_config):
            return super().generate(inputs, generation_config, **kwargs)
        cache.activate_past_recording()
        try:
            return super().generate(inputs, generation_config, **kwargs)
        finally:
            cache.stop_recording()
            with torch.no_grad():
                self._settle(cache)

    @staticmethod
    def _check_positions(input_ids: Tensor | None, attention_mask: Tensor | None, positions: Tensor) -> None:
        """Refuse positions that `generate` would not count itself."""
        if layout_of(checked_input(input_ids, attention_mask), attention_mask, positions, None).packed:
            raise InputError("generate() goes on from one text in a row: leave position_ids out.")

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As transformers' own, without positions, which a memory counts itself, and the tokenizer."""
        # transformers up to 5.23 begins assisted decoding with all that a cache has read, too.
        cache, ids = kwargs.get(CACHE_NAME), kwargs.get("input_ids", args[0] if args else None)
        if isinstance(cache, BackboneCache) and cache.recording and ids is not None:
            kwargs["next_sequence_length"] = ids.shape[1] - cache.get_seq_length()
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        left_out = ("position_ids", "tokenizer", "assistant_tokenizer")
        return {name: value for name, value in inputs.items() if name not in left_out}

    def _read_columns(
        self,
        memory: WorkingMemory,
        layout: Layout,
        input_ids: Tensor,
        columns: Tensor | None,
        layers: _Layers | None = None,
        first: int = 0,
    ) -> list[Block]:
        """Blocks of the logits of the wanted columns, or of all final states where ``columns`` is None.

        Args:
            layers: where to add the states of all layers, chunk by chunk.
            first: columns of the texts that were read already.
        """
        texts, lengths = layout.aligned(input_ids)[:, first:], [length - first for length in layout.lengths]
        logits = None
        if columns is not None:
            logits = range(int(columns.min()) - first, int(columns.max()) + 1 - first)
        blocks = self.reader.stream(memory, texts, lengths=lengths, logits=logits, layers=layers)
        return [Block(first + at, values) for at, values in blocks]

    def _record(
        self, past: BackboneCache, input_ids: Tensor, logits_to_keep: int, layers: _Layers | None
    ) -> int:
        """Read all but the columns of a text ``[1, N]`` that have logits, and let these be taken back; how
        many columns were read."""
        first = max(input_ids.shape[1] - logits_to_keep, 0) if logits_to_keep else 0
        if first:
            for _ in self.reader.stream(past.memory, input_ids[:, :first], layers=layers):
                pass
        past.note(LastInput(past.memory.copy(), input_ids[:, first:]))
        return first

    def _settle(self, cache: BackboneCache) -> None:
        """Let a cache's memory read what stays of an input whose end was taken back."""
        memory, unread = cache.memory, cache.unread
        if unread is not None and unread.shape[1]:
            before = memory.copy()
            try:
                for _ in self.reader.stream(memory, unread):
                    pass
            except BaseException:
                memory.go_back_to(before)
                raise
        cache.move_on()

    @property
    def base_model(self) -> "Body":
        """The model without its head: called like the model, it gives final states in place of logits."""
        return Body(self)


def _together(
    layers: _Layers, layout: Layout, chosen: bool | Sequence[int] | None
) -> tuple[Tensor | None, ...]:
    """The states of the chosen layers, by default all, from those of chunks."""
    count, everywhere = len(layers[0]), layout.places(0)
    indices = {at % count for at in chosen} if isinstance(chosen, Sequence) else range(count)
    return tuple(
        layout.take([Block(0, states[at]) for states in layers], everywhere) if at in indices else None
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
        """``last_hidden_state [B, N, width]``, which the head is given; arguments are those of the model."""
        past = cache_of({"cache": cache, "past_key_values": past_key_values})
        return self.model.final_states(input_ids, attention_mask, position_ids, past, use_cache, others)
