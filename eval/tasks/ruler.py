"""RULER: 13 synthetic tasks of any length (arXiv 2404.06654); see `hiermem.eval.ruler`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.documents import read_document
from hiermem.errors import InputError
from hiermem.eval.comparison import Report
from hiermem.eval.haystack import Haystack
from hiermem.eval.prompt_files import check_prompt_file, prompt_parts, write_prompts
from hiermem.eval.ruler import RULER, Example, Family, Place, Sources, differences, fitted
from hiermem.eval.ruler.questions import pools
from hiermem.eval.ruler.scoring import any_found, share_found, summary
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import Document, DocumentTask, Question

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.eval.qa_data import Pool
    from hiermem.model import HierMemModel

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class RulerQuestion(Question):
    """A question of a RULER task.

    Attributes:
        family: its kind of task.
    """

    family: Family


@dataclass(frozen=True)
class Texts:
    """Texts of a run: the haystack with single spaces, and data sets of questions by name."""

    haystack: str | None
    pools: dict[str, Pool]


@register
@dataclass(frozen=True, kw_only=True)
class Ruler(DocumentTask):
    """RULER (arXiv 2404.06654): 13 tasks of any length; score: the share of references found in the answer.

    The essays of the published haystack are replaced by the text that is given, such as a book of PG-19; the
    data of qa_1 and qa_2, by XQuAD and Natural Questions. Instructions before the text are the beginning of
    the document, which every method reads.

    Examples:

        hiermem eval ruler --task niah_single_1 --length 4096 --limit 20 --method full

        hiermem eval ruler --task niah_single_2,vt --length 4096,8192 --haystack book.txt --keep 0.25

        hiermem eval ruler --task all --haystack book.txt --qa data --json
    """

    name = "ruler"
    title = "RULER"
    headline = "score"
    axis = "length"
    by = "task"
    told = ("tasks", "lengths", "differs", "prompts")

    task: str = option(help=f"Tasks, comma-separated, or all: {', '.join(RULER)}.")
    length: tuple[int, ...] = option(
        (4096,),
        help="Tokens of prompt and answer together, comma-separated lengths.",
        alias="--lengths",
    )
    limit: int = option(20, help="Examples of each task and length.", least=1)
    haystack: str | None = option(None, help="Text file in place of the published essays.", document=True)
    qa: Path | None = option(None, help="Folder with folders xquad and nq, for qa_1 and qa_2.")
    split: str = option("test", help="Split of the questions of qa_1 and qa_2.")
    seed: int = option(0, help="Seed of everything that is drawn at random.")
    dump: Path | None = option(None, help="Write the prompts to this JSONL file, run nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.names:
            if name not in RULER:
                raise InputError(
                    f"There is no RULER task {name!r}: give {ALL}, or some of {', '.join(RULER)}."
                )
        for option_name, values in (("--task", self.names), ("--length", self.length)):
            if len(set(values)) < len(values):
                raise InputError(f"One of {option_name} is given twice: give each once.")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(RULER) if self.task == ALL else tuple(name.strip() for name in self.task.split(","))

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same without an instruction: the tasks have their own."""
        return super().configure(config).with_asking(instruction="")

    def load(self, config: HierMemConfig) -> Texts:
        """The texts that the tasks need.

        Raises:
            InputError: it was not given.
        """
        check_prompt_file(self.dump)
        needed = self._needed()
        if "haystack" in needed and self.haystack is None:
            raise InputError(f"The task {needed['haystack']} hides needles in a text: give --haystack.")
        haystack = None if self.haystack is None else " ".join(read_document(self.haystack).split())
        named = {name: task for name, task in needed.items() if name != "haystack"}
        if named and self.qa is None:
            raise InputError(
                f"The task {next(iter(named.values()))} needs questions about paragraphs: give --qa, or name "
                f"other tasks."
            )
        return Texts(haystack, pools(self.qa, named, self.split, self.seed) if self.qa else {})

    def _needed(self) -> dict[str, str]:
        """Needs of the tasks, each with the first task that has it."""
        needed: dict[str, str] = {}
        for name in self.names:
            if RULER[name].source:
                needed.setdefault(RULER[name].source, name)
        return needed

    def texts(self, data: Texts) -> list[str]:
        return [data.haystack or "", *(text for pool in data.pools.values() for text in pool.all_texts())]

    def settings(self, data: Texts, config: HierMemConfig) -> dict[str, Any]:
        settings: dict[str, Any] = {"tasks": self.names, "lengths": self.length, "limit": self.limit}
        settings["seed"] = self.seed
        settings["haystack"] = None if self.haystack is None else Path(self.haystack).name
        if self.qa is not None and data.pools:
            settings |= {"qa": self.qa.name, "split": self.split}
        settings["differs"] = differences(self.names)
        return {**settings, "system": self.method, **self.method_options()}

    # ---- with the model

    def documents(self, model: HierMemModel, data: Texts) -> list[Document]:
        """Each example with its question."""
        found = []
        for place, example, tokens in self._examples(model, data):
            question = RulerQuestion(
                key=f"{place.task}/{place.length}/{place.index}",
                text=example.question,
                answers=example.answers,
                lead=lead_of(model, example),
                about=(("task", place.task), ("length", place.length), ("tokens", tokens)),
                room=RULER[place.task].room,
                family=RULER[place.task],
            )
            found.append(Document(example.text, [question]))
        return found

    def _examples(self, model: HierMemModel, data: Texts) -> Iterator[tuple[Place, Example, int]]:
        """Every example with the tokens of its prompt and the room for its answer."""
        from hiermem.prompts import prompt_text
        from hiermem.text import encode

        tokenizer = model.tokenizer
        sources = Sources(self._long_haystack(tokenizer, data.haystack), data.pools)

        def tokens(example: Example) -> int:
            prompt = prompt_text(tokenizer, [example.text], example.question, "")
            lead = encode(tokenizer, lead_of(model, example))
            return len(prompt.ids(tokenizer, begins=True)) + len(lead)

        for name in self.names:
            for length in self.length:
                for index in range(self.limit):
                    place = Place(self.seed, name, length, index)
                    yield place, *fitted(RULER[name], sources, place, tokens)

    def _long_haystack(self, tokenizer: Any, text: str | None) -> Haystack | None:
        """The haystack, repeated where it is shorter than an example, as published."""
        if text is None:
            return None
        haystack = Haystack(tokenizer, text)
        times = math.ceil(max(self.length) / max(len(haystack.spans), 1))
        return haystack if times == 1 else Haystack(tokenizer, " ".join([text] * times))

    def scores(self, question: Question, response: Response) -> dict[str, Any]:
        """Share of the references that are found, or whether one is."""
        assert isinstance(question, RulerQuestion)
        score = any_found if question.family.any_answer else share_found
        return {"score": score(response.text, question.answers)}

    def result(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A row for each task and length; the score is the mean of all rows."""
        return summary(rows)

    @property
    def exported(self) -> Path | None:
        return self.dump

    def export(self, model: HierMemModel, data: Texts) -> int:
        """Write the prompts as JSON lines: see `prompt_parts`, with ``answer`` (references) and settings."""
        assert self.dump is not None
        prompts = (
            {
                **prompt_parts(model, example.text, example.question, lead_of(model, example)),
                "answer": list(example.answers),
                "any_answer": RULER[place.task].any_answer,
                "max_new_tokens": RULER[place.task].room,
                "task": place.task,
                "length": place.length,
            }
            for place, example, _ in self._examples(model, data)
        )
        return write_prompts(self.dump, prompts)

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        """Leaderboards, below what differs from the published tasks."""
        differs = dict.fromkeys(words for report in reports for words in report["config"].get("differs", ()))
        note = [f"Other than published: {'; '.join(differs)}.", ""] if differs else []
        return [*note, *super().table(reports)]


def lead_of(model: HierMemModel, example: Example) -> str:
    """How an answer begins: as published, without the "Answer:" that a prompt without chat template has."""
    chat = getattr(model.tokenizer, "chat_template", None)
    return example.lead if chat else example.lead.removeprefix(" Answer:")
