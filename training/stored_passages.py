"""Questions whose passages are recalled as keys and values, and the answers that the text gets.

Documents are made of the paragraphs of Natural Questions and XQuAD, in their official layouts. They are read
with the tier `kv`; passages are those that `ask` shows, and it answers from them as text: the teacher. All
that takes long is kept in the run's folder.

A sample is a function of seed and number alone, as others are (`samples.py`).
"""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from hiermem.answering import answered_together
from hiermem.asking import PreparedPrompt, prepare
from hiermem.errors import InputError
from hiermem.eval.qa_data import Pool, PoolQuestion, load_pool
from hiermem.eval.result_log import replaced
from hiermem.memory.digest import digest
from hiermem.memory.kv.recall import Chosen
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.prompts import around_passages
from hiermem.recalling import chosen_tokens, kv_tier
from hiermem.settings import check_settings
from hiermem.training.distributed import barrier, rank

FOLDERS = ("nq", "xquad")
"""Data sets that are looked for."""
_TOGETHER = 64  # questions that are answered before they are noted


@dataclass(frozen=True)
class PassageConfig:
    """Settings of questions whose passages are recalled as keys and values.

    Attributes:
        questions: most questions of a data set; its other paragraphs are not read.
        split: files that are taken. Those of `test` stay for measurements.
        keep: of the tier `kv`.
        dtype: of that tier, too.
        answer: most tokens of an answer.
        held_out: share of the paragraphs whose questions are not trained on.
        seed: seed of all samples.
    """

    questions: int = 600
    split: str = "validation"
    keep: float = 1.0
    dtype: str = "int8"
    answer: int = 32
    held_out: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.questions, self.answer) < 1 or not 0 < self.held_out < 1:
            raise InputError(
                f"There must be at least 1 question, answers of at least 1 token, and a share of paragraphs "
                f"held out between 0 and 1, not {self.questions}, {self.answer} and {self.held_out}."
            )
        KVTier(self.keep, self.dtype)  # which refuses


@dataclass(frozen=True)
class StoredPassage:
    """A question, and the answer that the backbone gives to its passages as text.

    Attributes:
        name: of the data set and the question.
        tier: what holds the keys and values of the document.
        chosen: which of them are the passages.
        tail: tokens that are read behind them.
        text: tokens of the same prompt with the passages as text.
        answer: tokens of the answer.
    """

    name: str
    tier: KVTier
    chosen: Chosen
    tail: list[int]
    text: list[int]
    answer: list[int]


@dataclass(frozen=True)
class StoredPassages:
    """Several of them."""

    passages: list[StoredPassage]

    @property
    def names(self) -> list[str]:
        """Names for messages."""
        return [passage.name for passage in self.passages]

    def to(self, device: torch.device) -> "StoredPassages":
        """Itself: what is computed is moved then."""
        return self


class PassageDataset:
    """Questions by number.

    Args:
        model: reads the documents and answers.
        data: folder that holds folders of `FOLDERS`.
        config: settings of the questions.
        kept: the run's folder.
    """

    def __init__(self, model: HierMemModel, data: Path, config: PassageConfig, kept: Path) -> None:
        self.config = config
        passages = []
        with _settings(model, config):
            for name in present(data):
                pool = load_pool(data / name, config.split, limit=config.questions, seed=config.seed)
                passages += _Document(model, name, pool.about_questions(), config, kept).passages()
        held_out = {name: _draw(config.seed, name) < config.held_out for name, _ in passages}
        self._trained = [passage for name, passage in passages if not held_out[name]]
        self._held_out = [passage for name, passage in passages if held_out[name]]
        if not self._trained or not self._held_out:
            raise InputError(
                "There are too few questions to train on some and hold out others: give more, about several "
                "paragraphs."
            )
        random.Random(config.seed).shuffle(self._held_out)
        self._held = False

    def of_held_out(self) -> "PassageDataset":
        """The questions that are held out."""
        twin = copy(self)
        twin._held = True
        return twin

    def batch(self, numbers: Sequence[int]) -> StoredPassages:
        """Several questions; each comes once before any comes again."""
        return StoredPassages([self._passage(number) for number in numbers])

    def _passage(self, number: int) -> StoredPassage:
        if self._held:
            return self._held_out[number % len(self._held_out)]
        epoch, place = divmod(number, len(self._trained))
        order = list(range(len(self._trained)))
        random.Random(f"{self.config.seed}/{epoch}").shuffle(order)
        return self._trained[order[place]]


def present(data: Path) -> list[str]:
    """Which of `FOLDERS` are there.

    Raises:
        InputError: none.
    """
    found = [name for name in FOLDERS if (data / name).is_dir()]
    if not found:
        raise InputError(f"{data} holds none of the folders {', '.join(FOLDERS)}: give --data one that does.")
    return found


def _draw(seed: int, name: str) -> float:
    return random.Random(f"{seed}/{name}").random()


@dataclass(frozen=True)
class _Document:
    """A data set that is read and answered, of which the run keeps what took long.

    Attributes:
        model: with settings of `_settings`.
        kept: the run's folder.
    """

    model: HierMemModel
    name: str
    pool: Pool
    config: PassageConfig
    kept: Path

    def passages(self) -> list[tuple[str, StoredPassage]]:
        """All usable questions, each with the name of its paragraph.

        The first process reads and answers, the others take what it has kept.
        """
        if rank() == 0:
            self._read()
        barrier()
        memory = MemoryState.load(self._folder, self.model)
        tier = kv_tier(memory)
        end = memory.records()[len(tier) - 1].end if len(tier) else 0
        prompts = {question: prepare(self.model, memory, question.text) for question in self.pool.questions}
        usable = {
            question: prompt
            for question, prompt in prompts.items()
            if prompt.sources and max(source.end for source in prompt.sources) <= end
        }
        if rank() == 0:
            self._answer({question.key: prompt for question, prompt in usable.items()})
        barrier()
        answers = self._answers()
        return [
            (
                f"{self.name}/{question.paragraph}",
                self._passage(memory, question, prompt, answers[question.key]),
            )
            for question, prompt in usable.items()
        ]

    def _passage(
        self, memory: MemoryState, question: PoolQuestion, prompt: PreparedPrompt, answer: str
    ) -> StoredPassage:
        reader, instruction = self.model.reader, self.model.config.asking.instruction
        _, behind = around_passages(reader.tokenizer, [], question.text, instruction)
        return StoredPassage(
            f"{self.name} {question.key}",
            kv_tier(memory),
            chosen_tokens(reader, memory, kv_tier(memory), prompt.sources),
            reader.encode(behind, begins=False)[0].tolist(),
            prompt.ids[0].tolist(),
            reader.encode(answer, begins=False)[0].tolist()[: self.config.answer],
        )

    @cached_property
    def _stem(self) -> Path:
        """Where its files stand: what was made with other settings has another name."""
        made_by = [asdict(self.config), self.model.config.to_dict(), self.model.fingerprint()]
        data = [self.pool.text, *((question.key, question.text) for question in self.pool.questions)]
        return self.kept / f"{self.name}-{digest(json.dumps([made_by, data]), {})[:12]}"

    @property
    def _folder(self) -> Path:
        return self._stem.with_suffix(".hmem")

    @property
    def _file(self) -> Path:
        return self._stem.with_suffix(".answers.json")

    def _read(self) -> None:
        """Read the document, unless an earlier run has."""
        if not self._folder.is_dir():
            self.model.read(self.pool.text).save(self._folder)

    def _answers(self) -> dict[str, str]:
        return dict(json.loads(self._file.read_text("utf-8"))) if self._file.is_file() else {}

    def _answer(self, prompts: dict[str, PreparedPrompt]) -> None:
        """Answer from text what is not answered yet."""
        from tqdm.auto import tqdm

        answers = self._answers()
        missing = [key for key in prompts if key not in answers]
        for at in tqdm(range(0, len(missing), _TOGETHER), desc=f"answering {self.name}", disable=None):
            keys = missing[at : at + _TOGETHER]
            with self.model.inference():
                found = answered_together(
                    self.model.reader, [prompts[key] for key in keys], self.config.answer
                )
            answers |= {key: answer.text for key, answer in zip(keys, found, strict=True)}
            replaced(self._file, json.dumps(answers, ensure_ascii=False, indent=0))


@contextmanager
def _settings(model: HierMemModel, config: PassageConfig) -> Iterator[None]:
    """Settings by which a model keeps keys and values and answers every question from text."""
    before = model.config.longterm, model.config.asking
    tiers = {KVTier.name: {"keep": config.keep, "dtype": config.dtype}}
    model.config.longterm = replace(before[0], tiers=tiers)
    model.config.asking = replace(before[1], passages="text", working=False, least_confidence=0.0)
    try:
        yield
    finally:
        model.config.longterm, model.config.asking = before
