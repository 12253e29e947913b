"""Methods that are compared: hiermem and what a user would otherwise pick, all around the same backbone.

Every method reads a text once and is then asked any number of times. They differ in what they show the
backbone before the question, and in nothing else: prompts, decoding and scoring are the same.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from hiermem.asking import PreparedPrompt
from hiermem.errors import InputError
from hiermem.memory.cache.head_groups import budget_that_keeps, kept_shares
from hiermem.memory.policies import FullCachePolicy, SegmentLocalPolicy, WindowPolicy
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.prompts import PromptText, prompt_text, split_prompt
from hiermem.text import encode_with_spans

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

Context = TypeVar("Context")

_HERE = "\x1equestion\x1e"


class Method(ABC, Generic[Context]):
    """Reads a text, then makes prompts that a backbone goes on from.

    Args:
        model: the backbone with hiermem around it; its configuration holds the budgets.
    """

    name: ClassVar[str]

    def __init__(self, model: "HierMemModel") -> None:
        self.model = model

    @abstractmethod
    def read(self, text: str) -> Context:
        """A text, as the method holds it once it has been read."""

    @abstractmethod
    def prompt(self, context: Context, question: str) -> PreparedPrompt:
        """The question with what the method shows before it; the context stays as it is."""


class HierMem(Method[MemoryState]):
    """hiermem as it is configured."""

    name = "hiermem"

    def read(self, text: str) -> MemoryState:
        return self.model.read(text, progress=False)

    def prompt(self, context: MemoryState, question: str) -> PreparedPrompt:
        return self.model.prepare(context, question)


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


class Pruned(InContext):
    """As configured but for recall: pruned to the budget before the question is seen, a trained memory handed
    on around segments where the model has one.

    Args:
        keep: share of a prompt's tokens that a head keeps in the mean, in place of the configured budget.
    """

    name = "pruned"

    def __init__(self, model: "HierMemModel", keep: float | None = None) -> None:
        super().__init__(model)
        self.keep = keep

    def working(self, tokens: int) -> WorkingMemoryConfig:
        config = super().working(tokens)
        if self.keep is None:
            return config
        shares, kept = config.head_shares, max(round(self.keep * tokens), 1)
        shares = None if shares is None else kept_shares(shares, self.model.mamba.groups)
        return replace(config, budget=budget_that_keeps(shares, tokens, kept, config.sinks))

    def memory(self, tokens: int) -> WorkingMemory:
        return self.model.new_working_memory(self.working(tokens), recurrent=True)

    def read(self, text: str) -> PrefilledContext:
        prefill = super().read(text)
        prefill.working.evict()
        return prefill


class Compressed(Pruned):
    """The same as libraries that compress a cache do it: all of a text is read, then a single decision is
    made."""

    name = "compressed"

    def working(self, tokens: int) -> WorkingMemoryConfig:
        return replace(super().working(tokens), update_interval=self.model.adapter.trained_range)

    def check_length(self, tokens: int) -> None:
        check_fits(tokens, self.model.adapter.trained_range)


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


class Full(InContext):
    """The bare backbone with full attention over the whole text."""

    name = "full"

    def memory(self, tokens: int) -> WorkingMemory:
        return self.model.adapter.whole_memory()

    def check_length(self, tokens: int) -> None:
        check_fits(tokens, self.model.adapter.trained_range)


class Truncated(Full):
    """The bare backbone with full attention over the last tokens only, as many as it was trained on."""

    name = "truncated"
    room: ClassVar[int] = 512
    """Positions left free for the question and its answer."""

    def read(self, text: str) -> PrefilledContext:
        starts = [start for start, _ in encode_with_spans(self.model.tokenizer, text)[1]]
        kept = self.model.adapter.trained_range - self.room
        return super().read(text[starts[-kept] :] if len(starts) > kept else text)


class Streaming(InContext):
    """Sinks and a sliding window without gaps (StreamingLLM, arXiv 2309.17453) of the configured budget."""

    name = "streaming"

    def working(self, tokens: int) -> WorkingMemoryConfig:
        window = self.model.config.working.with_policy(WindowPolicy.name)
        return replace(window, positions="compact", head_shares=None)


@dataclass(frozen=True)
class Indexed:
    """Passages of a text and their index."""

    passages: list[str]
    index: Any


class Bm25(Method[Indexed]):
    """Retrieval of the best passages by BM25 before the bare backbone: the plain RAG that one would pick."""

    name = "bm25"
    passage_tokens: ClassVar[int] = 128
    top_k: ClassVar[int] = 4

    def read(self, text: str) -> Indexed:
        spans = encode_with_spans(self.model.tokenizer, text)[1]
        starts = [start for start, _ in spans[:: self.passage_tokens]]
        passages = [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]
        return Indexed(passages, word_index(passages))

    def prompt(self, context: Indexed, question: str) -> PreparedPrompt:
        scores = context.index.get_scores(words(question))
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[: self.top_k]
        passages = [context.passages[i].strip() for i in sorted(best)]
        return _fresh(self.model, passages, question)


class Closed(Method[None]):
    """The bare backbone without the text: what it knows or guesses."""

    name = "closed"

    def read(self, text: str) -> None:
        return None

    def prompt(self, context: None, question: str) -> PreparedPrompt:
        return _fresh(self.model, [], question)


def word_index(texts: Sequence[str]) -> Any:
    """BM25 over the words of texts.

    Raises:
        InputError: rank-bm25 is not installed.
    """
    try:
        from rank_bm25 import BM25Okapi
    except ImportError as error:
        raise InputError("BM25 needs rank-bm25: install hiermem with the extra eval.") from error
    return BM25Okapi([words(text) for text in texts])


def words(text: str) -> list[str]:
    """Case-folded words."""
    return re.findall(r"\w+", text.casefold())


def _fresh(model: "HierMemModel", passages: list[str], question: str) -> PreparedPrompt:
    working = model.adapter.whole_memory()
    text = prompt_text(model.tokenizer, passages, question, model.config.asking.instruction)
    return PreparedPrompt(working, model.reader.encode(text), [])


METHODS: dict[str, type[Method[Any]]] = {
    method.name: method for method in (HierMem, Pruned, Compressed, Full, Truncated, Streaming, Bm25, Closed)
}


def new_method(name: str, model: "HierMemModel", keep: float | None = None) -> Method[Any]:
    """A method by name.

    Args:
        keep: share of a text's tokens that `pruned` and `compressed` keep.

    Raises:
        InputError: there is none of that name.
    """
    check_method(name, tuple(METHODS))
    check_compressed(name, model.config.working, keep)
    kind = METHODS[name]
    return kind(model, keep) if issubclass(kind, Pruned) else kind(model)


def check_compressed(name: str, config: WorkingMemoryConfig, keep: float | None) -> None:
    """Refuse a compression that cannot be made before anything is loaded.

    Raises:
        InputError: no share is given, the policy scores nothing, or positions leave no gaps.
    """
    if name != Compressed.name:
        return
    if keep is None:
        raise InputError("The system compressed keeps a share of a text: give --keep.")
    if config.policy in (FullCachePolicy.name, SegmentLocalPolicy.name) or config.positions == "compact":
        raise InputError(
            f"The system compressed needs a policy that scores tokens where they stand, not {config.policy} "
            f"with the positions {config.positions}: choose another --policy or --positions."
        )


def check_method(name: str, choices: Sequence[str]) -> None:
    """Refuse what is no method before anything is loaded.

    Raises:
        InputError: ``name`` is none of ``choices``.
    """
    if name not in choices:
        raise InputError(f"There is no system {name!r}: choose one of {', '.join(choices)}.")
