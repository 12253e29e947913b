"""Asking a memory: recall segments, put their best passages before the question, name the sources."""

from dataclasses import dataclass, replace
from textwrap import shorten
from typing import TYPE_CHECKING

from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.passages import Asked, Source, select, with_forms
from hiermem.prompts import prompt_ids, prompt_text
from hiermem.reranking import PREFIX, is_close, reranked
from hiermem.settings import check_settings
from hiermem.templates import without_thoughts
from hiermem.text import check_text

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

NOT_FOUND = "The document does not say."
"""The answer where no passage shares a word with the question."""


@dataclass
class AskConfig:
    """Settings of an answer.

    Attributes:
        passage_characters: length of all passages together, whole sentences and rows of the recalled
            segments: a small model answers better from less text. 0 takes the whole segments.
        least_score: sentences and rows below this share of the best one's score are left out.
        instruction: what follows the question; nothing where there are no passages.
        working: whether the working memory stands before the passages too; segments that it still holds
            are then not recalled. It always stands in where nothing is recalled.
        rerank: how many of the best segments are ranked again by the likelihood of the question after each,
            to recall the `top_k` best of them, which are fewer; 0: none. Done where scores are close:
        margin: where the last that would be recalled leads the next by less than this share of its score.
    """

    passage_characters: int = 600
    least_score: float = 0.7
    instruction: str = "Answer from the passages."
    working: bool = False
    rerank: int = 0
    margin: float = 0.3

    def __post_init__(self) -> None:
        check_settings(self)
        if self.passage_characters < 0:
            raise InputError(f"passage_characters must not be negative, not {self.passage_characters}.")
        if not 0 <= self.least_score <= 1:
            raise InputError(f"least_score must be between 0 and 1, not {self.least_score}.")
        if self.rerank < 0 or self.rerank == 1 or self.margin < 0:
            raise InputError(
                f"rerank must be 0 or at least 2, margin not negative; not {self.rerank}, {self.margin}."
            )


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer and the passages that were put before the question, best first.

    Attributes:
        complete: whether the answer ended by itself, not at the length limit or in a loop.
        found: whether the document has a word of the question, other than English function words, or at least
            another form of one (`hiermem.retrieval.words.are_forms`): in a passage that is shown, or, where
            the working memory stands before the question, anywhere. If not, nothing is generated and the text
            says that the document does not say, unless the working memory stands there: it may answer what
            shares no word, such as a summary.
    """

    text: str
    sources: list[Source]
    complete: bool = True
    found: bool = True

    def __repr__(self) -> str:
        text = shorten(self.text, 80, placeholder=" …")
        end = "" if self.complete else ", cut short"
        return f"Answer({text!r}, sources: {len(self.sources)}{end})"


@dataclass(frozen=True)
class PreparedPrompt:
    """A question made ready for the backbone.

    Attributes:
        working: what was read before; it belongs to this prompt and moves when the prompt is read.
        ids: tokens to be read next, ``[1, n]`` int64 on the model's device.
        sources: the passages among them, best first.
        found: see `Answer`.
    """

    working: WorkingMemory
    ids: Tensor
    sources: list[Source]
    found: bool = True

    def fork(self) -> "PreparedPrompt":
        """The same prompt with a memory of its own; costs nothing."""
        return replace(self, working=self.working.copy())


def ask(
    model: "HierMemModel", memory: MemoryState, question: str, top_k: int | None, max_new_tokens: int
) -> Answer:
    """Answer ``question`` from ``memory``, which stays as it is."""
    return answered(model, prepare(model, memory, question, top_k), max_new_tokens)


def answered(model: "HierMemModel", prompt: PreparedPrompt, max_new_tokens: int) -> Answer:
    """The greedy answer to a prompt, whose memory moves on."""
    if not prompt.found and not any(prompt.working.num_tokens):
        return Answer(NOT_FOUND, [], found=False)
    text, ended = model.continue_from(prompt.working, prompt.ids, max_new_tokens)
    answer, *others = without_thoughts(model.tokenizer, text).split(PREFIX)
    return Answer(answer.strip(), prompt.sources, ended or bool(others), prompt.found)


def prepare(
    model: "HierMemModel", memory: MemoryState, question: str, top_k: int | None = None
) -> PreparedPrompt:
    """Recall what fits ``question`` and put it before the question; ``memory`` stays as it is."""
    check_text(question)
    if not question.strip():
        raise InputError("The question is empty: ask something.")
    config = model.config.asking
    k = model.config.longterm.top_k if top_k is None else top_k
    records, asked, wanted = memory.records(), Asked(memory.longterm.key, question), question
    if not asked.are_known(memory.longterm.open):
        wanted = with_forms(asked, question, records)
        asked = Asked(memory.longterm.key, wanted)
    hits = recall(model, memory, wanted, k, leave_out_held=config.working)
    sources = select(hits, records, asked, config.passage_characters, config.least_score)
    alone = bool(hits) and not config.working
    working = model.new_working_memory(memory.working.config) if alone else memory.working.copy()
    found = bool(sources) or (not alone and asked.are_known(memory.longterm.open))
    texts = [source.text.strip() for source in sorted(sources, key=lambda source: source.start)]
    text = prompt_text(model.tokenizer, texts, question.strip(), config.instruction)
    return PreparedPrompt(
        working, prompt_ids(model.tokenizer, text, working).to(model.device), sources, found
    )


def recall(
    model: "HierMemModel", memory: MemoryState, question: str, k: int, leave_out_held: bool = True
) -> list[Hit]:
    """The best ``k`` segments for a question, best first; without those still held in working memory."""

    def is_gone(record: SegmentRecord) -> bool:
        end = record.first_token + len(record.ids)
        return not bool(memory.working.held_everywhere(record.first_token, end).all())

    wanted = is_gone if leave_out_held else lambda _: True
    config = model.config.asking
    if not k:
        return []
    if config.rerank and k >= config.rerank:
        raise InputError(
            f"Reranking {config.rerank} segments changes nothing where {k} are recalled: give a top_k below "
            f"{config.rerank}."
        )
    longterm, summary = memory.longterm, None
    if longterm.summary is not None:
        summary = model.summarise(question)
        if longterm.open is not None and longterm.open.embedding is None:
            longterm.open.embedding = model.embed(longterm.open.text).cpu()
    hits = longterm.search(question, max(k, config.rerank), wanted, summary)
    return (reranked(model, hits, question) if is_close(hits, k, config.margin) else hits)[:k]
