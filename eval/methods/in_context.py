"""The whole text in the prompt, over a working memory: full attention, the end of the text, a window."""

from dataclasses import dataclass, replace
from typing import ClassVar

from hiermem.asking import PreparedPrompt
from hiermem.errors import InputError
from hiermem.eval.methods.base import Method, register_method
from hiermem.memory.policies import WindowPolicy
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.prompts import PromptText, split_prompt
from hiermem.text import encode_with_spans

_HERE = "\x1equestion\x1e"


@dataclass(frozen=True)
class PrefilledContext:
    """A prompt that was read up to the end of its text.

    Attributes:
        working: what was read.
        after: what the prompt goes on with, around the question.
    """

    working: WorkingMemory
    after: PromptText


class InContext(Method[PrefilledContext]):
    """The whole text in the prompt, over a working memory of any policy."""

    def working(self, tokens: int) -> WorkingMemoryConfig:
        """Settings of the working memory that a prompt of so many tokens is read into."""
        return self.model.config.working

    def read(self, text: str) -> PrefilledContext:
        model = self.model
        begun, after = split_prompt(model.tokenizer, text, _HERE, model.config.asking.instruction)
        ids = model.reader.encode(begun)
        self.check_length(ids.shape[1])
        working = self.memory(ids.shape[1])
        model.read_ids(working, ids)
        return PrefilledContext(working, after)

    def memory(self, tokens: int) -> WorkingMemory:
        """An empty working memory for a prompt of so many tokens."""
        return self.model.new_working_memory(self.working(tokens))

    def check_length(self, tokens: int) -> None:
        """Refuse a text that the method cannot read; by default there is none."""

    def prompt(self, context: PrefilledContext, question: str) -> PreparedPrompt:
        after = replace(context.after, content=context.after.content.replace(_HERE, question))
        ids = self.model.reader.encode(after, begins=not any(context.working.num_tokens))
        return PreparedPrompt(context.working.copy(), ids, [])


def check_fits(tokens: int, trained: int) -> None:
    """Refuse a text that is longer than what the backbone was trained on.

    Raises:
        InputError: it is.
    """
    if tokens > trained:
        raise InputError(
            f"The text has {tokens} tokens and the backbone was trained on {trained}: "
            f"full attention over all of it does not fit."
        )


@register_method
class Full(InContext):
    """The bare backbone with full attention over the whole text."""

    name = "full"

    def memory(self, tokens: int) -> WorkingMemory:
        return self.model.adapter.whole_memory()

    def check_length(self, tokens: int) -> None:
        check_fits(tokens, self.model.adapter.trained_range)


@register_method
class Truncated(Full):
    """The bare backbone with full attention over the last tokens only, as many as it was trained on."""

    name = "truncated"
    room: ClassVar[int] = 512
    """Positions left free for the question and its answer."""

    def read(self, text: str) -> PrefilledContext:
        starts = [start for start, _ in encode_with_spans(self.model.tokenizer, text)[1]]
        kept = self.model.adapter.trained_range - self.room
        return super().read(text[starts[-kept] :] if len(starts) > kept else text)


@register_method
class Streaming(InContext):
    """Sinks and a sliding window without gaps (StreamingLLM, arXiv 2309.17453) of the configured budget."""

    name = "streaming"
    parts = ("working", "asking")
    model_options = ("budget",)

    def working(self, tokens: int) -> WorkingMemoryConfig:
        window = self.model.config.working.with_policy(WindowPolicy.name)
        return replace(window, positions="compact", head_shares=None)
