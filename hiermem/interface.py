"""A model over a working memory as transformers' generation, trainers and pipelines know models."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from hiermem.arguments import cache_of, check_generation, checked_input, generation_setting, is_assisted
from hiermem.cache import CACHE_NAME, CACHE_NAMES, BackboneCache, LastInput
from hiermem.errors import InputError
from hiermem.greedy import AGAIN
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
        asked, keep = input_ids.shape[1], self._setting("use_cache", use_cache)
        input_ids = input_ids if past is None else past.with_unread(input_ids)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        layers: _Layers | None = [] if self._setting("output_hidden_states", output_hidden_states) else None
        places, last = layout.places(logits_to_keep or asked), None
        if keep and past is not None and past.recording and len(layout.lengths) == 1:
            last = self._read_beginning(memory, layout, input_ids, logits_to_keep or asked, layers)
        first = 0 if last is None else layout.lengths[0] - last.ids.shape[1]
        blocks = self._read_columns(memory, layout, input_ids, places[1], layers, first)
        logits = layout.take(blocks, places)
        output = CausalLMOutputWithPast(logits=logits)
        if labels is not None:
            output.loss = language_loss(logits, labels, num_items_in_batch)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory) if past is None else past.moved_on(last)
        if layers:
            output.hidden_states = _together(layers, layout, asked, output_hidden_states)
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
        asked, keep = input_ids.shape[1], self._setting("use_cache", use_cache)
        input_ids = input_ids if past is None else past.with_unread(input_ids)
        memory, layout = self._laid_out(input_ids, attention_mask, position_ids, past, keep)
        blocks = self._read_columns(memory, layout, input_ids, None)
        states = layout.take(blocks, layout.places(asked))[:, -asked:]
        output = BaseModelOutputWithPast(last_hidden_state=states)
        if keep:
            output[CACHE_NAME] = BackboneCache(memory) if past is None else past.moved_on(None)
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
        """The memory that an input is read into, and how its texts lie in it."""
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
            InputError: drafts are to come from the model's own layers; or another cache.
        """
        check_generation(kwargs, generation_config, self.generation_config)
        if (positions := kwargs.pop("position_ids", None)) is not None:
            self._check_positions(kwargs.get("input_ids", inputs), kwargs.get("attention_mask"), positions)
        past = cache_of(kwargs)
        for name in CACHE_NAMES:
            kwargs.pop(name, None)
        if generation_setting(kwargs, generation_config, self.generation_config, "use_cache") is not False:
            kwargs[CACHE_NAME] = BackboneCache(self.new_recurrent_memory()) if past is None else past
            if is_assisted(kwargs, generation_config, self.generation_config):
                kwargs[CACHE_NAME].activate_past_recording()
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

    def _read_beginning(
        self, memory: WorkingMemory, layout: Layout, input_ids: Tensor, kept: int, layers: _Layers | None
    ) -> LastInput:
        """Read what comes before the last ``kept`` tokens of one text, if it is much, and note where the rest
        begins, to which a draft may be taken back."""
        text = layout.aligned(input_ids)[:, : layout.lengths[0]]
        before = text.shape[1] - kept
        first = before if before > AGAIN else 0  # a few are read again rather than by themselves
        if first:
            for _ in self.reader.stream(memory, text[:, :first], layers=layers):
                pass
        return LastInput(memory.copy(), text[:, first:])

    @property
    def base_model(self) -> "Body":
        """The model without its head: called like the model, it gives final states in place of logits."""
        return Body(self)


def _together(
    layers: _Layers, layout: Layout, asked: int, chosen: bool | Sequence[int] | None
) -> tuple[Tensor | None, ...]:
    """The states of the chosen layers, by default all, in the last ``asked`` columns."""
    count, places = len(layers[0]), layout.places(asked)
    indices = {at % count for at in chosen} if isinstance(chosen, Sequence) else range(count)
    return tuple(
        layout.take([Block(0, states[at]) for states in layers], places)[:, -asked:]
        if at in indices
        else None
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
