"""Data sets of questions with answers, as paragraphs of long documents and questions about them.

Four layouts, told apart by their files:

- Natural Questions as lost-in-the-middle gives it (arXiv 2307.03172): `SPLIT.jsonl`, each row with
  ``question``, ``answers`` and ``ctxs``, one of which ``isgold``.
- XQuAD (arXiv 1910.11856): `LANGUAGE.SPLIT.json`, each file in the layout of SQuAD; or its name on the hub.
- Key-value retrieval (arXiv 2307.03172): `SPLIT.jsonl`, each row with ``ordered_kv_records``, ``key`` and
  ``value``; each row is a document of its own.
- One's own: `document.txt`, its paragraphs with blank lines between, and `questions.jsonl`, each row with
  ``question``, ``answers`` and maybe ``evidence``, a quotation of the document.

Questions without answers are such that the document does not answer.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.json_files import filled, first_line_of, read_json, read_lines, split_file, texts
from hiermem.eval.sampling import stratified

DOCUMENT, QUESTIONS = "document.txt", "questions.jsonl"
ENGLISH = "en"
KEY_VALUE_ROOM = 100
"""Most tokens of an answer to key-value retrieval, as published (arXiv 2307.03172)."""


@dataclass(frozen=True)
class PoolQuestion:
    """A question about one paragraph of a pool.

    Attributes:
        key: tells it from all others of the data.
        answers: all that count as right; none where the document does not answer it.
        paragraph: index of the paragraph that answers it; None where the data do not say.
        quote: the part of that paragraph that answers it; the whole paragraph, unless data say more.
        room: most tokens of an answer, where the data say so.
    """

    key: str
    text: str
    answers: tuple[str, ...]
    paragraph: int | None
    quote: str = ""
    room: int | None = None


@dataclass(frozen=True)
class Pool:
    """Paragraphs that make one document in their order, and the questions about them.

    Attributes:
        paragraphs: each once.
        separator: stands between two of them in the document.
    """

    paragraphs: list[str]
    questions: list[PoolQuestion]
    separator: str = "\n\n"

    def all_texts(self) -> Iterator[str]:
        """The document, questions and answers: all that results depend on."""
        yield self.text
        for question in self.questions:
            yield from (question.text, *question.answers)

    @property
    def text(self) -> str:
        """The document."""
        return self.separator.join(self.paragraphs)

    @cached_property
    def _starts(self) -> list[int]:
        lengths = (len(paragraph) + len(self.separator) for paragraph in self.paragraphs)
        return [0, *accumulate(lengths)]

    def evidence(self, question: PoolQuestion) -> tuple[tuple[int, int], ...]:
        """Character spans of the document that answer a question; none where the data do not say."""
        if question.paragraph is None:
            return ()
        paragraph = self.paragraphs[question.paragraph]
        quote = question.quote or paragraph
        start = self._starts[question.paragraph] + paragraph.index(quote)
        return ((start, start + len(quote)),)

    def shuffled(self, seed: int) -> "Pool":
        """The same with its paragraphs in an order drawn with ``seed``."""
        order = list(range(len(self.paragraphs)))
        random.Random(seed).shuffle(order)
        return self._of(order, self.questions)

    def drawn(self, limit: int | None, seed: int) -> "Pool":
        """The same with at most ``limit`` questions, in their order; of those with and without answers as
        many as in proportion."""
        questions = stratified(self.questions, lambda question: bool(question.answers), limit, seed)
        return replace(self, questions=questions)

    def about_questions(self) -> "Pool":
        """Only the paragraphs that questions are about; all where one question does not say."""
        wanted = {question.paragraph for question in self.questions}
        if None in wanted:
            return self
        return self._of([place for place in range(len(self.paragraphs)) if place in wanted], self.questions)

    def halved(self) -> "Pool":
        """The first half of the paragraphs, and all questions: those of the other half have no answers.

        Raises:
            InputError: the paragraph of a question is not known, or there are fewer than two paragraphs.
        """
        half = len(self.paragraphs) // 2
        if not half or any(question.paragraph is None for question in self.questions):
            raise InputError(
                "Questions of one half can be asked of the other only where each has its paragraph: give "
                "the evidence of every question and a document of at least two paragraphs."
            )
        return self._of(range(half), self.questions)

    def _of(self, order: Sequence[int], questions: Iterable[PoolQuestion]) -> "Pool":
        """These paragraphs in this order; the questions of others are left without answers."""
        places = {old: new for new, old in enumerate(order)}
        moved = []
        for question in questions:
            if question.paragraph in places:
                moved.append(replace(question, paragraph=places[question.paragraph]))
            elif question.paragraph is not None:
                moved.append(replace(question, paragraph=None, answers=(), quote=""))
            else:
                moved.append(question)
        return replace(self, paragraphs=[self.paragraphs[old] for old in order], questions=moved)


def split_of(data: Path, split: str | None) -> str | None:
    """The split that is taken: of a name on the hub, by default `validation`, the only one of XQuAD; of a
    folder, `test`; None of one's own document.

    Raises:
        InputError: a split of one's own document is asked for.
    """
    if not _is_own(data):
        return split or ("validation" if hub.is_name(data) else "test")
    if split is not None:
        raise InputError(f"{data} is one document with its questions: leave --split out.")
    return None


def _is_own(data: Path) -> bool:
    return (data / DOCUMENT).exists() or (data / QUESTIONS).exists()


def load_pool(
    data: Path,
    split: str | None = None,
    language: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    document_language: str | None = None,
) -> Pool:
    """The one document of a data set with its questions: see `load_pools`.

    Raises:
        InputError: as `load_pools`; or each question has a document of its own.
    """
    pools = load_pools(data, split, language, limit, seed, document_language)
    if len(pools) > 1:
        raise InputError(f"{data} holds one document for each question: give questions about one document.")
    return pools[0]


def load_pools(
    data: Path,
    split: str | None = None,
    language: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    document_language: str | None = None,
    halved: bool = False,
) -> list[Pool]:
    """The documents of a data set with their questions.

    Args:
        data: a folder in one of the layouts, or the name of XQuAD on the hub.
        split: see `split_of`.
        language: of the questions; by default English.
        limit: at most so many questions; all paragraphs stay.
        seed: of the paragraphs' order and of what ``limit`` draws.
        document_language: of the paragraphs and answers; by default that of the questions.
        halved: leave out the second half of the paragraphs, but not its questions, whose answers it takes.

    Raises:
        InputError: files are missing or odd; there is no such split or language; the layout has none.
    """
    chosen = (language or ENGLISH, document_language or language or ENGLISH)
    part = split_of(data, split)
    if part is None:
        return [_own(data, chosen, halved).drawn(limit, seed)]
    if hub.is_name(data):
        pool = _xquad_from_hub(str(data), part, chosen)
    elif not data.is_dir():
        raise InputError(f"There is no folder {data}: give one with questions, or a name on the hub.")
    elif any(data.glob("*.jsonl")):
        _only_english(data, chosen)
        file = split_file(data, part, ".jsonl")
        keys = first_line_of(file).keys()
        if "ordered_kv_records" in keys:
            return _key_values(file, limit, seed, halved)
        if "ctxs" not in keys:
            raise InputError(
                f"{file} holds neither Natural Questions (question, answers, ctxs) nor key-value pairs "
                f"(ordered_kv_records, key, value): give data in one of these layouts."
            )
        pool = _natural_questions(file)
    else:
        pool = _xquad(data, part, chosen)
    pool = pool.shuffled(seed)
    return [(pool.halved() if halved else pool).drawn(limit, seed)]


def _only_english(data: Path, languages: tuple[str, str]) -> None:
    for language in languages:
        if language != ENGLISH:
            raise InputError(f"{data} is in one language, {ENGLISH}: there is no {language!r} of it.")


class _Paragraphs(dict[str, int]):
    """Indices of paragraphs, each text once."""

    def place(self, text: str) -> int:
        return self.setdefault(text, len(self))


def _natural_questions(file: Path) -> Pool:
    paragraphs = _Paragraphs()

    def question(number: str, row: dict[str, Any]) -> PoolQuestion:
        contexts = row["ctxs"]
        if not isinstance(contexts, list) or not all(isinstance(context, dict) for context in contexts):
            raise ValueError("ctxs must be a list of paragraphs")
        places = [(paragraphs.place(filled(c["text"], "a paragraph")), c["isgold"]) for c in contexts]
        gold = [place for place, is_gold in places if is_gold is True]
        answers = texts(row["answers"], "answers")
        if len(gold) != 1 or not answers:
            raise ValueError("a question needs answers, and one paragraph among its ctxs that isgold")
        return PoolQuestion(number, filled(row["question"], "question"), answers, gold[0])

    questions = read_lines(file, question)
    return Pool(list(paragraphs), questions)


def _key_values(file: Path, limit: int | None, seed: int, halved: bool) -> list[Pool]:
    """Each row as the JSON object of the paper's prompts, one pair a line."""
    if halved:
        raise InputError("Key-value pairs are one document for each question: there are no halves.")

    def pool(number: str, row: dict[str, Any]) -> Pool:
        records, key, value = row["ordered_kv_records"], filled(row["key"], "key"), row["value"]
        pairs = [texts(record, "a pair") for record in records]
        if any(len(pair) != 2 for pair in pairs) or [pair for pair in pairs if pair[0] == key] != [
            (key, value)
        ]:
            raise ValueError("ordered_kv_records must be pairs, one of them the key with its value")
        last = len(pairs) - 1
        lines = [
            f'{" " if place else "{"}"{name}": "{held}"{"," if place < last else "}"}'
            for place, (name, held) in enumerate(pairs)
        ]
        text = f'What is the value of the key "{key}" in the JSON object?'
        place = pairs.index((key, value))
        return Pool(lines, [PoolQuestion(number, text, (value,), place, room=KEY_VALUE_ROOM)], "\n")

    return stratified(read_lines(file, pool), lambda _: None, limit, seed)


def _xquad(data: Path, split: str, languages: tuple[str, str]) -> Pool:
    """The paragraphs and answers of one language with the questions of another, or the same."""
    files = [path.name.split(".") for path in sorted(data.glob("*.*.json"))]
    there = [parts[0] for parts in files if parts[1:] == [split, "json"]]
    if not there:
        splits = sorted({parts[1] for parts in files if len(parts) == 3})
        known = f"choose one of {', '.join(splits)}" if splits else "give a folder with questions"
        raise InputError(f"{data} holds no questions of the split {split!r}: {known}.")
    for language in languages:
        if language not in there:
            raise InputError(f"{data} has no {split} in {language!r}: choose one of {', '.join(there)}.")
    return _crossed(*(_squad(data / f"{language}.{split}.json") for language in languages))


def _squad(file: Path) -> Pool:
    content, paragraphs, questions = read_json(file), _Paragraphs(), []
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                place = paragraphs.place(filled(paragraph["context"], "context"))
                questions += [_squad_question(raw, place) for raw in paragraph["qas"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{file} is not in the layout of SQuAD ({error}): give the official file."
        ) from error
    return _checked(Pool(list(paragraphs), questions), str(file))


def _squad_question(raw: dict[str, Any], place: int) -> PoolQuestion:
    answers = texts([answer["text"] for answer in raw["answers"]], "answers")
    return PoolQuestion(
        filled(raw["id"], "id"), filled(raw["question"], "question"), answers, place if answers else None
    )


def _xquad_from_hub(name: str, split: str, languages: tuple[str, str]) -> Pool:
    pools = []
    for language in languages:
        paragraphs = _Paragraphs()

        def question(row: dict[str, Any], paragraphs: _Paragraphs = paragraphs) -> PoolQuestion:
            answers = [{"text": text} for text in row["answers"]["text"]]
            return _squad_question({**row, "answers": answers}, paragraphs.place(row["context"].strip()))

        questions = list(hub.rows(name, split, question, f"xquad.{language}"))
        pools.append(_checked(Pool(list(paragraphs), questions), name))
    return _crossed(*pools)


def _crossed(first: Pool, document: Pool) -> Pool:
    """The second pool with the questions of the first, of the same keys."""
    words = {question.key: question.text for question in first.questions}
    if words.keys() != {question.key for question in document.questions}:
        raise InputError("The two languages do not have the same questions: give files of the same ids.")
    questions = [replace(question, text=words[question.key]) for question in document.questions]
    return replace(document, questions=questions)


def _checked(pool: Pool, name: str) -> Pool:
    """A pool with questions, each told from all others by its key."""
    if not pool.questions:
        raise InputError(f"{name} holds no questions: give the official files.")
    if len({question.key for question in pool.questions}) < len(pool.questions):
        raise InputError(f"{name} has two questions of one id: give each its own.")
    return pool


def _own(data: Path, languages: tuple[str, str], halved: bool) -> Pool:
    if languages[0] != languages[1]:
        raise InputError(f"{data} is one document with its questions: leave --document-language out.")
    try:
        text = (data / DOCUMENT).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{data / DOCUMENT} cannot be read as UTF-8 text: {error}.") from error
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if not paragraphs:
        raise InputError(f"{data / DOCUMENT} is blank: write the document into it.")
    questions = read_lines(data / QUESTIONS, lambda number, row: _own_question(number, row, paragraphs))
    pool = Pool(paragraphs, questions)
    return pool.halved() if halved else pool


def _own_question(number: str, row: dict[str, Any], paragraphs: Sequence[str]) -> PoolQuestion:
    for name in row.keys() - {"question", "answers", "evidence"}:
        raise ValueError(f"a question has no {name!r}, only question, answers and evidence")
    question, answers = filled(row["question"], "question"), texts(row["answers"], "answers")
    if "evidence" not in row:
        return PoolQuestion(number, question, answers, None)
    if not answers:
        raise ValueError("a question without answers has no evidence")
    pattern = r"\s+".join(map(re.escape, filled(row["evidence"], "evidence").split()))
    found = [(n, m.group()) for n, text in enumerate(paragraphs) for m in re.finditer(pattern, text)]
    if len(found) != 1:
        raise ValueError(
            f"the evidence stands {len(found)} times within the paragraphs of {DOCUMENT}, not once"
        )
    ((place, quote),) = found
    return PoolQuestion(number, question, answers, place, quote)
