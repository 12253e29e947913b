"""A question made ready: segments are recalled and their best passages put before it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from hiermem.asked_memory import AskedMemory
from hiermem.asking_config import AskConfig
from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.policies import FullCachePolicy
from hiermem.memory.working import WorkingMemory
from hiermem.passages import QueryTerms, Selection, Source, select, with_forms
from hiermem.prompts import prompt_text
from hiermem.reader import Reader
from hiermem.recalling import kv_tier, recall_passages
from hiermem.reranking import is_close, reranked
from hiermem.retrieval.keys import Question
from hiermem.text import check_text


@dataclass(frozen=True)
class PreparedPrompt:
    """A question made ready for the backbone.

    Attributes:
        working: what was read before; it belongs to this prompt and moves when the prompt is read.
        ids: tokens to be read next, ``[1, n]`` int64 on the model's device.
        sources: the passages among them, or in ``working``, best first.
        found: see `hiermem.answer.Answer`.
        confidence: see there, too.
        recalled: whether ``working`` holds the passages as keys and values, and nothing else.
    """

    working: WorkingMemory
    ids: Tensor
    sources: list[Source]
    found: bool = True
    confidence: float | None = None
    recalled: bool = False

    @property
    def answerable(self) -> bool:
        """Whether there is something to answer from: words of the question, or what was read before it."""
        return self.found or (not self.recalled and any(self.working.num_tokens))

    def fork(self) -> "PreparedPrompt":
        """The same prompt with a memory of its own; costs nothing."""
        return replace(self, working=self.working.copy())


class QuestionTarget(Protocol):
    """Target of a question: the model, as far as asking knows it."""

    @property
    def reader(self) -> Reader:
        """Reads the prompt."""

    @property
    def config(self) -> HierMemConfig:
        """Settings of an answer and of the recall."""


def check_question(question: str) -> None:
    """Refuse what is no question.

    Raises:
        InputError: it is no text, or empty.
    """
    if not isinstance(question, str):
        raise InputError(f"A question is a text, or one of a list of texts, not {type(question).__name__}.")
    check_text(question)
    if not question.strip():
        raise InputError("The question is empty: ask something.")


def prepare(
    model: QuestionTarget,
    memory: AskedMemory,
    question: str,
    top_k: int | None = None,
    shown: str | None = None,
) -> PreparedPrompt:
    """Recall what fits ``question`` and put it before the question; what ``memory`` has read stays as it is.

    Args:
        top_k: segments to recall; None: as configured.
        shown: the question as the backbone reads it; None: as it is.

    Raises:
        InputError: the question is empty, or see `recall`.
    """
    reader, config = model.reader, model.config.asking
    config.check_passages()
    if config.passages == "kv":
        kv_tier(memory)  # which refuses a memory without
    top_k = model.config.longterm.top_k if top_k is None else top_k
    check_question(question)
    search = _Search.of(reader, memory, question, (shown or question).strip())
    hits = search.hits(reader, memory, config, top_k)
    selection = search.select(hits, memory, config)
    sources, confidence = selection.sources, selection.confidence
    alone = bool(hits) and not config.working
    least = config.least_confidence
    told = not least or (bool(sources) and (confidence is None or confidence >= least))
    known = told or search.terms.are_known(memory.longterm.partial)
    found = known and memory.answers_alone if not alone else told
    in_order = sorted(sources, key=lambda source: (source.document, source.start))
    if alone and sources and found and config.passages == "kv":
        recalled = recall_passages(reader, memory, in_order, search.plain, config.instruction)
        if recalled is not None:
            return PreparedPrompt(*recalled, sources, found, confidence, recalled=True)
    texts = [source.text.strip() for source in in_order]
    text = prompt_text(reader.tokenizer, texts, search.plain, config.instruction)
    ids = reader.encode(text, begins=alone or not any(memory.working.num_tokens))
    working = _prompt_memory(reader, memory, ids.shape[1]) if alone else memory.working.copy()
    return PreparedPrompt(working, ids, sources, found, confidence)


def passages(model: QuestionTarget, memory: AskedMemory, question: str, count: int) -> list[Source]:
    """The passages that fit a question best, one of each of the ``count`` best segments, best first; fewer
    where a segment has nothing in common with the question.

    Raises:
        InputError: the question is empty, or see `recall`.
    """
    check_question(question)
    reader, config = model.reader, model.config.asking
    search = _Search.of(reader, memory, question, question.strip())
    sources: list[Source] = []
    for hit in search.hits(reader, memory, config, count):
        best = search.select([hit], memory, config).sources[:1]
        sources += [replace(source, score=hit.score) for source in best]
    return sources


@dataclass(frozen=True)
class _Search:
    """A question as passages are found by it.

    Attributes:
        query: with the forms of its words that the document has.
        terms: of that.
        plain: as a person would say it.
        known: share of its words that the backbone's tokenizer knows whole; 1 where nobody asks.
    """

    query: str
    terms: QueryTerms
    plain: str
    known: float

    @classmethod
    def of(cls, reader: Reader, memory: AskedMemory, question: str, plain: str) -> "_Search":
        """The search for a question."""
        terms, query = QueryTerms(memory.longterm.key, question), question
        if not terms.are_known(memory.longterm.partial):
            query = with_forms(terms, question, memory.texts())
            terms = QueryTerms(memory.longterm.key, query)
        return cls(query, terms, plain, reader.known_words(plain) if memory.longterm.reads_states else 1.0)

    def hits(self, reader: Reader, memory: AskedMemory, config: AskConfig, count: int) -> list[Hit]:
        """The best segments, best first."""
        return recall(reader, memory, self.query, config, count, config.working, self.plain)

    def select(self, hits: Sequence[Hit], memory: AskedMemory, config: AskConfig) -> Selection:
        """The best passages of segments, each with its place."""
        question = Question(self.query, meaning=self.plain, known=self.known)
        scale = memory.longterm.unit_scale(question) if hits else None
        limits = (config.passage_characters, config.least_score, scale)
        selection = select(hits, memory, self.terms, *limits)
        return replace(selection, sources=[_placed(memory, source) for source in selection.sources])


def _placed(memory: AskedMemory, source: Source) -> Source:
    """The same source with its place in its document."""
    place = memory.place(source.document, source.start)
    return replace(source, page=place.page, chapter=place.chapter, line=place.line)


def _prompt_memory(reader: Reader, memory: AskedMemory, tokens: int) -> WorkingMemory:
    """An empty working memory for a prompt of so many tokens that stands by itself.

    All of a short one stays, which costs less than to choose what does: no more tokens than the budget and an
    interval, which a pruned cache holds too, and with as much room behind them in the trained range. A longer
    one is pruned as the document was.
    """
    config = memory.working_config
    whole = reader.new_working_memory(replace(config.with_policy(FullCachePolicy.name), head_shares=None))
    short = tokens <= min(config.budget + config.update_interval, whole.trained_range // 2)
    # Positions that are learned end, and only what is pruned goes on behind their end.
    return whole if short and not whole.learned_positions else reader.new_working_memory(config)


def recall(
    reader: Reader,
    memory: AskedMemory,
    question: str,
    config: AskConfig,
    top_k: int,
    leave_out_held: bool = True,
    plain: str = "",
) -> list[Hit]:
    """The best ``top_k`` segments for a question, best first.

    Where a search key is made of memory embeddings, those of the incomplete segment are made once and kept in
    ``memory`` for the next question.

    Args:
        leave_out_held: whether those are left out that the working memory still holds.
        plain: the question in plain words, where ``question`` has more or repeats some to find by.

    Raises:
        InputError: as many are recalled as would be reranked.
    """

    def is_gone(record: SegmentRecord) -> bool:
        end = record.first_token + len(record.ids)
        return not bool(memory.working.cache.held_everywhere(record.first_token, end).all())

    if not top_k:
        return []
    if config.rerank and top_k >= config.rerank:
        raise InputError(
            f"Reranking {config.rerank} segments changes nothing where {top_k} are recalled: give a top_k "
            f"below {config.rerank}."
        )
    eligible = is_gone if leave_out_held else lambda _: True
    longterm, summary = memory.longterm, None
    if longterm.summary is not None:
        summary = reader.summarise(plain or question)
        if longterm.partial is not None and longterm.partial.embedding is None:
            longterm.partial.embedding = reader.embed(longterm.partial.text).cpu()
    embedding, known = None, 1.0
    if longterm.reads_states:
        embedding, known = reader.sentence_embedding(plain or question), reader.known_words(plain or question)
    query = Question(question, summary, plain, embedding, known)
    hits = longterm.recall(query, max(top_k, config.rerank), eligible)
    if is_close(hits, top_k, config.margin):
        hits = reranked(reader, hits, plain or question)
    hits = hits[:top_k]
    return hits + memory.recalled_beside(query, top_k, hits, eligible)
