"""Sentences and questions with the embeddings that a sentence encoder gives them, and the backbone's states.

Texts are pieces of PG-19's training books and, where the folders are there, PubMedQA's abstracts for
training and the validation documents of XQuAD (English), SQuALITY and QMSum. Questions are theirs and others
made of words of sentences. What is read stays in the run's folder.
"""

import random
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hiermem.errors import InputError, NonFiniteError
from hiermem.eval.qa_data import load_pool
from hiermem.eval.summary_data import load_documents
from hiermem.eval.tasks import pubmedqa
from hiermem.memory.digest import digest
from hiermem.model import HierMemModel
from hiermem.retrieval.encoder import MINILM, sentence_encoder
from hiermem.retrieval.keys import DenseKey, UnitText
from hiermem.retrieval.units import Unit, split
from hiermem.settings import check_settings
from hiermem.text import encode_with_spans, from_beginning
from hiermem.training.distributed import barrier, rank
from hiermem.training.samples import books

ASKING = (
    "who",
    "what is",
    "when did",
    "where is",
    "how many",
    "which",
    "what was",
    "why do",
    "name of the",
    "",
)
"""Beginnings of questions that are made of the words of a sentence."""
_TOGETHER = 16  # texts in a file; as many times that questions
_NEIGHBOURS = 8  # sentences of one text that stand in a sample together: they are hard to tell apart


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of the sentences.

    Attributes:
        pieces: pieces of books, and as many of all other documents at most.
        characters: of a piece.
        questions: made of words of sentences, beside those of the data.
        sentences: sentences of a sample.
        asked: questions of a sample.
        held_out: share of the texts whose sentences are not trained on.
        encoder: that teaches, see `hiermem.retrieval.keys.DenseKey`.
        seed: seed of all samples.
    """

    pieces: int = 1000
    characters: int = 1600
    questions: int = 16_000
    sentences: int = 224
    asked: int = 128
    held_out: float = 0.05
    encoder: str = MINILM
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        counts = (self.pieces, self.characters, self.questions, self.asked)
        if min(counts) < 1 or self.sentences < _NEIGHBOURS or not 0 < self.held_out < 1:
            raise InputError(
                f"Sentences are drawn from at least 1 piece, {_NEIGHBOURS} or more in a sample beside a "
                f"question, and a share of the texts between 0 and 1 is held out."
            )


@dataclass(frozen=True)
class SentenceBatch:
    """Sentences and questions.

    Attributes:
        names: for messages.
        states: of their tokens, side by side, of the layers that are looked at, ``[T, L * d]`` float16.
        counts: tokens of each.
        taught: embeddings that the encoder gives them, ``[U, W]`` float32 of length 1.
    """

    names: list[str]
    states: Tensor
    counts: Tensor
    taught: Tensor

    def to(self, device: torch.device) -> "SentenceBatch":
        """The same batch on another device."""
        return SentenceBatch(
            self.names, self.states.to(device), self.counts.to(device), self.taught.to(device)
        )


class SentenceDataset:
    """Batches by number, each of a draw of its own.

    Args:
        model: reads the texts; it has a state encoder, which says what layers are looked at.
        data: folder that holds `pg19`.
        config: settings of the sentences.
        kept: the run's folder.
    """

    def __init__(self, model: HierMemModel, data: Path, config: SentenceConfig, kept: Path) -> None:
        self.config, self._name = config, "sentences"
        texts, questions = _texts(data, config)
        if rank() == 0:
            _read(model, texts, questions, config, kept)
        barrier()
        files = [load_file(path) for path in _files(model, texts, questions, config, kept)]
        sentences = [file for file in files if int(file["is_text"])]
        held = max(round(config.held_out * len(sentences)), 1)
        if len(sentences) <= held:
            raise InputError("There are too few texts to hold some out: give more books.")
        self._held_out, self._sentences = _units(sentences[:held]), _units(sentences[held:])
        self._questions = _units([file for file in files if not int(file["is_text"])])

    def of_held_out(self) -> "SentenceDataset":
        """Sentences that are held out, with the same questions."""
        twin = copy(self)
        twin._sentences, twin._name = self._held_out, "held-out sentences"
        return twin

    def batch(self, numbers: Sequence[int]) -> SentenceBatch:
        """The sample of that number; of several, all sentences together."""
        drawn = [unit for number in numbers for unit in self._drawn(number)]
        return SentenceBatch(
            [f"{self._name} {number}" for number in numbers],
            torch.cat([unit.states for unit in drawn]),
            torch.tensor([len(unit.states) for unit in drawn]),
            torch.stack([unit.taught for unit in drawn]).float(),
        )

    def statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean states of all sentences and questions that are trained on, ``[U, L * d]``, their embeddings
        ``[U, W]``, the mean of the former, and the deviation of tokens' states."""
        units = [*self._sentences, *self._questions]
        means = torch.stack([unit.states.float().mean(0) for unit in units])
        some = torch.cat([unit.states[::16] for unit in units]).float()
        return means, torch.stack([unit.taught for unit in units]).float(), means.mean(0), some.std(0)

    def _drawn(self, number: int) -> list["_Taught"]:
        rng = random.Random(f"{self.config.seed}/{self._name}/{number}")
        groups = rng.sample(
            range(0, len(self._sentences), _NEIGHBOURS),
            min(self.config.sentences // _NEIGHBOURS, -(-len(self._sentences) // _NEIGHBOURS)),
        )
        sentences = [unit for at in groups for unit in self._sentences[at : at + _NEIGHBOURS]]
        return sentences + rng.sample(self._questions, min(self.config.asked, len(self._questions)))


@dataclass(frozen=True)
class _Taught:
    """States of a sentence's or question's tokens and its embedding."""

    states: Tensor
    taught: Tensor


def _units(files: Sequence[dict[str, Tensor]]) -> list[_Taught]:
    """All sentences of files that have a token."""
    found = []
    for file in files:
        ends = [0, *file["counts"].cumsum(0).tolist()]
        spans = zip(pairwise(ends), file["taught"], strict=True)
        found += [_Taught(file["states"][a:b], taught) for (a, b), taught in spans if b > a]
    return found


def _texts(data: Path, config: SentenceConfig) -> tuple[list[str], list[str]]:
    """Texts and questions, drawn with the seed."""
    rng, texts, questions = random.Random(config.seed), list[str](), list[str]()
    paths = [*books(data, "train", config.pieces).values()]
    chosen = rng.sample(paths, min(len(paths), config.pieces))
    for number in range(config.pieces):
        book = _text(chosen[number % len(chosen)])
        start = rng.randrange(max(len(book) - 2 * config.characters, 1))
        texts += _cut(book[start : start + 2 * config.characters], config.characters)[:1]
    others: list[str] = []
    for text, asked in _documents(data):
        others += _cut(text, config.characters)
        questions += asked
    rng.shuffle(others)
    texts += others[: config.pieces]
    rng.shuffle(texts)
    sentences = [text[unit.start : unit.end] for text in texts for unit in split(text)]
    questions += [_made_of(rng.choice(sentences), rng) for _ in range(config.questions)]
    return texts, [question for question in questions if question.strip()]


@lru_cache(maxsize=64)
def _text(book: Path | str) -> str:
    """A book, from its file or as it is."""
    return book.read_text("utf-8") if isinstance(book, Path) else book


def _documents(data: Path) -> Iterator[tuple[str, list[str]]]:
    """Documents beside books, with their questions."""
    if (data / "pubmedqa").is_dir():
        for item in pubmedqa.load(data / "pubmedqa", "train"):
            yield item.abstract, [item.question]
    if (data / "xquad").is_dir():
        pool = load_pool(data / "xquad", "validation")
        yield pool.text, [question.text for question in pool.questions]
    for name in ("squality", "qmsum"):
        if (data / name).is_dir():
            for document in load_documents(data / name, "validation", None, 0):
                yield document.text, [question for question, _ in document.questions]


def _cut(text: str, characters: int) -> list[str]:
    """Whole sentences together, as many as fit."""
    pieces: list[list[Unit]] = []
    for unit in split(text):
        if not pieces or unit.end - pieces[-1][0].start > characters:
            pieces.append([])
        pieces[-1].append(unit)
    return [text[piece[0].start : piece[-1].end] for piece in pieces]


def _made_of(sentence: str, rng: random.Random) -> str:
    """A question of a few words of a sentence, in its order."""
    found = sentence.split()
    count = rng.randint(3, 8)
    start = rng.randrange(max(len(found) - count, 0) + 1)
    kept = [word for word in found[start : start + count] if rng.random() < 0.9]
    question = f"{rng.choice(ASKING)} {' '.join(kept)}".strip(" .,;:\"'")
    return question.lower() if rng.random() < 0.7 else f"{question}?"


def _files(
    model: HierMemModel, texts: Sequence[str], questions: Sequence[str], config: SentenceConfig, kept: Path
) -> list[Path]:
    """Files of what was read, in order; what was read with other settings has other names."""
    assert model.state_encoder is not None
    made_by = [asdict(config), model.state_encoder.layers, model.fingerprint(), texts, questions]
    stem = digest(repr(made_by), {})[:12]
    count = -(-len(texts) // _TOGETHER) + -(-len(questions) // (_TOGETHER * _TOGETHER))
    return [kept / f"states-{stem}-{number:05d}.safetensors" for number in range(count)]


def _read(
    model: HierMemModel, texts: Sequence[str], questions: Sequence[str], config: SentenceConfig, kept: Path
) -> None:
    """Read what an earlier run has not."""
    from tqdm.auto import tqdm

    paths, many = _files(model, texts, questions, config, kept), _TOGETHER * _TOGETHER
    parts: list[tuple[Sequence[str], bool]] = [
        (texts[at : at + _TOGETHER], True) for at in range(0, len(texts), _TOGETHER)
    ]
    parts += [(questions[at : at + many], False) for at in range(0, len(questions), many)]
    kept.mkdir(parents=True, exist_ok=True)
    for path, (part, are_texts) in tqdm([*zip(paths, parts, strict=True)], desc="reading", disable=None):
        if not path.exists():
            with model.inference():
                found = _of_texts(model, part, config) if are_texts else _of_questions(model, part, config)
            temporary = path.with_suffix(".tmp")
            save_file({**found, "is_text": torch.tensor(are_texts)}, temporary)
            temporary.replace(path)


def _of_texts(model: HierMemModel, texts: Sequence[str], config: SentenceConfig) -> dict[str, Tensor]:
    """States of the tokens of all sentences, how many each has, and their embeddings."""
    key, states, counts, taught = (
        DenseKey(encoder=config.encoder),
        list[Tensor](),
        list[Tensor](),
        list[Tensor](),
    )
    for text in texts:
        units = split(text)
        taught.append(key.unit_keys([UnitText(text[u.start : u.end], u.paragraph) for u in units]))
        ids, spans = encode_with_spans(model.tokenizer, text)
        whole = from_beginning(model.tokenizer, ids)
        skipped = max(len(whole) - len(ids), 1)  # the first token is one that all look back at
        states.append(_states_of(model, whole)[skipped:])
        ends = torch.tensor([end for _, end in spans])[skipped - (len(whole) - len(ids)) :]
        bounds = torch.tensor([[unit.start, unit.end] for unit in units])
        first, last = torch.searchsorted(ends, bounds, right=True).unbind(-1)
        counts.append(last - first)
        states[-1] = torch.cat([states[-1][a:b] for a, b in zip(first, last, strict=True)])
    return {"states": torch.cat(states), "counts": torch.cat(counts), "taught": torch.cat(taught)}


def _of_questions(model: HierMemModel, questions: Sequence[str], config: SentenceConfig) -> dict[str, Tensor]:
    """The same of questions, each read by itself."""
    taught = sentence_encoder(config.encoder, "cpu").embed(questions)
    rows = (model.reader.encode(question)[0].tolist() for question in questions)
    states = [_states_of(model, ids)[min(len(ids) - 1, 1) :] for ids in rows]
    counts = torch.tensor([len(each) for each in states])
    return {"states": torch.cat(states), "counts": counts, "taught": taught}


def _states_of(model: HierMemModel, ids: list[int]) -> Tensor:
    """States of tokens of the layers that are looked at, ``[T, L * d]`` float16 on the CPU."""
    encoder, found = model.state_encoder, list[Tensor]()
    assert encoder is not None

    def take(states: tuple[Tensor, ...]) -> None:
        found.append(encoder.chosen(states)[0].half().cpu())

    row = torch.tensor([ids], device=model.device)
    model.reader.read(model.adapter.whole_memory(), row, take_states=take)
    states = torch.cat(found)
    if not states.isfinite().all():
        raise NonFiniteError(
            "States of this backbone leave the range of float16, so no encoder can be taught."
        )
    return states
