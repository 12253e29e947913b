"""Answers to questions: whole, piece by piece, or several in one padded batch."""

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from hiermem.answer import NOT_FOUND, Answer
from hiermem.answer_stream import AnswerStream
from hiermem.answer_text import AnswerText
from hiermem.asking import PreparedPrompt, QuestionTarget
from hiermem.errors import InputError
from hiermem.memory.kv.rows import side_by_side
from hiermem.memory.working import WorkingMemory
from hiermem.reader import Reader

ROWS = 16
"""Most prompts in a batch."""

_Row = tuple[PreparedPrompt, AnswerText]


class AnsweringModel(QuestionTarget, Protocol):
    """A model that questions are put to."""

    def inference(self) -> AbstractContextManager[None]:
        """A context to compute in."""


def ask(
    model: AnsweringModel,
    prepare: Callable[[str, int | None], PreparedPrompt],
    question: Any,
    top_k: int | None,
    max_new_tokens: int,
    stream: bool,
) -> Answer | AnswerStream | list[Answer]:
    """The answer to a question, or the answers to a list of them; see `HierMemModel.ask`.

    Args:
        prepare: makes the prompt for a question and a number of segments to recall.
    """
    if isinstance(question, list | tuple):
        check_limits(top_k, max_new_tokens, stream)
        if stream:
            raise InputError("Several answers cannot be streamed: ask one question, or leave stream out.")
        start = time.perf_counter()
        with model.inference():
            prompts = [prepare(each, top_k) for each in question]
            return answered_together(model.reader, prompts, max_new_tokens, start)
    answer = begin(model, partial(prepare, question, top_k), top_k, max_new_tokens, stream)
    return answer if stream else answer.finish()


def begin(
    model: AnsweringModel,
    prepare: Callable[[], PreparedPrompt],
    top_k: int | None,
    max_new_tokens: int,
    stream: bool,
    on_end: Callable[[Answer], object] | None = None,
) -> AnswerStream:
    """Find what a question asks for, and be ready to answer.

    Args:
        prepare: makes the prompt.
        on_end: told of the answer.
    """
    check_limits(top_k, max_new_tokens, stream)
    start = time.perf_counter()
    with model.inference():
        prompt = prepare()
    pieces = answer_pieces(model.reader, prompt, max_new_tokens, start)
    return AnswerStream(pieces, model.inference, on_end)


def check_limits(top_k: int | None, max_new_tokens: int, stream: bool) -> None:
    """Refuse what no answer can have.

    Raises:
        InputError: a number is too small, or ``stream`` is neither True nor False.
    """
    if max_new_tokens < 1 or (top_k is not None and top_k < 0):
        raise InputError("max_new_tokens must be at least 1 and top_k must not be negative.")
    if not isinstance(stream, bool):
        raise InputError(f"stream must be True or False, not {stream!r}.")


def answer_pieces(
    reader: Reader, prompt: PreparedPrompt, max_new_tokens: int, start: float | None = None
) -> Generator[str, None, Answer]:
    """The greedy answer to a prompt, whose memory moves on, as pieces of its text; the whole is returned.

    Args:
        start: when the question was asked, by `time.perf_counter`; None: now.
    """
    start = time.perf_counter() if start is None else start
    text = AnswerText(reader.tokenizer, reader.ends, max_new_tokens)
    shown = 0
    if prompt.answerable:
        for _ in reader.greedy(prompt.working, prompt.ids, [text]):
            if piece := text.settled[shown:]:
                shown += len(piece)
                yield piece
    answer = _answer(prompt, text, start)
    if piece := answer.text[shown:]:
        yield piece
    return answer


def answered(
    reader: Reader, prompt: PreparedPrompt, max_new_tokens: int, start: float | None = None
) -> Answer:
    """The greedy answer to a prompt, whose memory moves on; ``start`` as in `answer_pieces`."""
    return answered_together(reader, [prompt], max_new_tokens, start)[0]


def answered_together(
    reader: Reader, prompts: Sequence[PreparedPrompt], max_new_tokens: int, start: float | None = None
) -> list[Answer]:
    """The greedy answers to prompts, whose memories may move on: those of one are as they are without the
    others, but for rounding.

    Prompts that stand after the same working memory, or after recalled keys and values, are read and answered
    as rows of one batch, at most `ROWS` of them; others one by one.

    Args:
        prompts: of one model and one `MemoryState`.
        start: when the questions were asked, by `time.perf_counter`; None: now.
    """
    start = time.perf_counter() if start is None else start
    texts = [AnswerText(reader.tokenizer, reader.ends, max_new_tokens) for _ in prompts]
    for rows in _batches(row for row in zip(prompts, texts, strict=True) if row[0].answerable):
        working, ids = rows[0][0].working, [prompt.ids[0] for prompt, _ in rows]
        if len(rows) > 1 and rows[0][0].recalled:
            working = side_by_side([prompt.working for prompt, _ in rows])
        elif len(rows) > 1:
            working.select_rows(torch.zeros(len(rows), dtype=torch.int64))
        padded, lengths = pad_sequence(ids, batch_first=True), [len(row) for row in ids]
        for _ in reader.greedy(working, padded, [text for _, text in rows], lengths):
            pass
    return [_answer(prompt, text, start) for prompt, text in zip(prompts, texts, strict=True)]


def _batches(rows: Iterable[_Row]) -> Iterator[Sequence[_Row]]:
    """Rows that can be read together, those of like lengths."""
    groups: dict[Hashable, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: row[0].ids.shape[1]):
        key = "recalled" if row[0].recalled else _content(row[0].working)
        groups.setdefault(key, []).append(row)
    for group in groups.values():
        yield from (group[at : at + ROWS] for at in range(0, len(group), ROWS))


def _content(memory: WorkingMemory) -> Hashable:
    """A key that memories share whose rows may be read together: what they hold and keep is the same."""
    if memory.recurrence is None and not any(memory.num_tokens):
        return memory.config.policy
    if memory.recurrence is not None and memory.recurrence.summary_tokens:
        return id(memory)  # its rows must keep step (`SegmentRecurrence.check_begins`)
    # Copies share tensors, which are never written.
    return memory.frames, tuple(tensor.data_ptr() for tensor in memory.state_dict().values())


def _answer(prompt: PreparedPrompt, text: AnswerText, start: float) -> Answer:
    """The answer to a prompt, as far as its text has come."""
    if not prompt.answerable:
        return Answer(NOT_FOUND, [], found=False, confidence=prompt.confidence)
    first = None if text.first_token is None else text.first_token - start
    return Answer(
        text.text, prompt.sources, text.complete, prompt.found, prompt.confidence, first, prompt.recalled
    )
