"""Passages found in the text before the bare backbone: the plain RAG that one would pick."""

import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from hiermem.asking import PreparedPrompt
from hiermem.errors import InputError
from hiermem.eval.methods.base import Method, register_method
from hiermem.passages import Source
from hiermem.prompts import prompt_text
from hiermem.text import encode_with_spans

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


class Index(Protocol):
    """Scores texts for a question."""

    def scores(self, question: str) -> NDArray[np.floating]:
        """How well each text fits, ``[n]`` float; higher is better."""


@dataclass(frozen=True)
class Indexed:
    """Passages of a text and their index.

    Attributes:
        spans: first character of each passage in the text, and that after its last.
        texts: the characters of those spans.
    """

    spans: list[tuple[int, int]]
    texts: list[str]
    index: Index


class Passages(Method[Indexed]):
    """Retrieval of the best passages before the bare backbone.

    Args:
        passages: how many are shown.
    """

    passage_tokens: ClassVar[int] = 128
    takes: ClassVar[tuple[str, ...]] = ("passages",)

    def __init__(self, model: "HierMemModel", passages: int = 4) -> None:
        super().__init__(model)
        self.passages = passages

    @abstractmethod
    def index(self, texts: Sequence[str]) -> Index:
        """An index of the passages."""

    def read(self, text: str) -> Indexed:
        starts = [start for start, _ in encode_with_spans(self.model.tokenizer, text)[1]]
        starts = starts[:: self.passage_tokens]
        spans = list(zip(starts, [*starts[1:], len(text)], strict=True))
        texts = [text[start:end] for start, end in spans]
        return Indexed(spans, texts, self.index(texts))

    def prompt(self, context: Indexed, question: str) -> PreparedPrompt:
        scores = context.index.scores(question)
        best = np.argsort(-scores, kind="stable")[: self.passages].tolist()
        shown = [context.texts[place].strip() for place in sorted(best)]
        spans = context.spans
        sources = [Source(p, spans[p][0], spans[p][1], float(scores[p]), context.texts[p]) for p in best]
        return fresh_prompt(self.model, shown, question, sources)


class WordIndex:
    """BM25 over the words of texts (Okapi; Robertson and Zaragoza, 2009).

    Raises:
        InputError: rank-bm25 is not installed.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            from rank_bm25 import BM25Okapi
        except ImportError as error:
            raise InputError("BM25 needs rank-bm25: install hiermem with the extra eval.") from error
        self._index: Any = BM25Okapi([words(text) for text in texts])

    def scores(self, question: str) -> NDArray[np.floating]:
        """How well each text fits, ``[n]`` float64."""
        found: NDArray[np.floating] = self._index.get_scores(words(question))
        return found


def words(text: str) -> list[str]:
    """Case-folded words."""
    return re.findall(r"\w+", text.casefold())


@register_method
class Bm25(Passages):
    """Passages found by BM25."""

    name: ClassVar[str] = "bm25"

    def index(self, texts: Sequence[str]) -> Index:
        return WordIndex(texts)


def fresh_prompt(
    model: "HierMemModel", passages: list[str], question: str, sources: Sequence[Source] = ()
) -> PreparedPrompt:
    """A prompt of these passages and the question over an empty cache of the bare backbone.

    Args:
        sources: where the passages stand, best first.
    """
    working = model.adapter.whole_memory()
    text = prompt_text(model.tokenizer, passages, question, model.config.asking.instruction)
    return PreparedPrompt(working, model.reader.encode(text), list(sources))
