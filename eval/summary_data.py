"""Data sets of question-focused summaries: each document with its questions and reference summaries.

Two layouts, told apart by their rows, `SPLIT.jsonl`:

- QMSum (arXiv 2104.05938): ``meeting_transcripts`` and the lists of general and specific queries.
- SQuALITY (arXiv 2205.11465): ``document`` and ``questions`` with several responses each.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.eval.json_files import filled, first_line_of, read_lines, split_file


@dataclass(frozen=True)
class SummaryDocument:
    """A document with what is asked about it.

    Attributes:
        key: tells it from all others of the data.
        questions: each with its reference answers.
    """

    key: str
    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def load_documents(data: Path, split: str, limit: int | None, seed: int) -> list[SummaryDocument]:
    """The documents of a split.

    Args:
        limit: at most so many questions, of as few documents as hold them, since each has to be read.
        seed: of the documents that ``limit`` draws.

    Raises:
        InputError: files are missing or odd, or there is no such split.
    """
    if not data.is_dir():
        raise InputError(f"There is no folder {data}: give one in the layout of QMSum or SQuALITY.")
    file = split_file(data, split, ".jsonl")
    keys = first_line_of(file).keys()
    if "meeting_transcripts" in keys:
        return _drawn(read_lines(file, _meeting), limit, seed)
    if {"document", "questions"} <= keys:
        return _drawn(read_lines(file, _story), limit, seed)
    raise InputError(
        f"{file} holds neither meetings of QMSum (meeting_transcripts) nor stories of SQuALITY (document, "
        f"questions): give data in one of these layouts."
    )


def _meeting(number: str, row: dict[str, Any]) -> SummaryDocument:
    turns = [
        f"{filled(turn['speaker'], 'speaker')}: {_text(turn['content'])}"
        for turn in row["meeting_transcripts"]
    ]
    queries = [*row["general_query_list"], *row["specific_query_list"]]
    return _document(number, "\n".join(turns), [(query["query"], [query["answer"]]) for query in queries])


def _story(number: str, row: dict[str, Any]) -> SummaryDocument:
    questions = [
        (question["question_text"], [response["response_text"] for response in question["responses"]])
        for question in row["questions"]
    ]
    return _document(number, row["document"], questions)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"content must be a text, not {value!r}")
    return value.strip()


def _document(number: str, text: Any, questions: list[tuple[Any, list[Any]]]) -> SummaryDocument:
    if not questions or not all(answers for _, answers in questions):
        raise ValueError("a document needs questions, and each of them an answer")
    pairs = [
        (filled(question, "a question"), tuple(filled(answer, "an answer") for answer in answers))
        for question, answers in questions
    ]
    return SummaryDocument(number, filled(text, "a document"), tuple(pairs))


def _drawn(documents: list[SummaryDocument], limit: int | None, seed: int) -> list[SummaryDocument]:
    if limit is None:
        return documents
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    found, left = [], limit
    for place in order:
        if left <= 0:
            break
        found.append(replace(documents[place], questions=documents[place].questions[:left]))
        left -= len(found[-1].questions)
    return found
