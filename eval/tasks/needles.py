"""Needles: four numbered facts of one kind in real text, one of them asked after the text has been read.

What a policy keeps is decided before the question is seen, so it must keep all four.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.comparison import family_of, labelled
from hiermem.eval.haystack import Haystack, hidden
from hiermem.eval.metrics import means
from hiermem.eval.prompt_files import check_prompt_file, prompt_parts, write_prompts
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, between, cell, table
from hiermem.eval.tasks.base import MethodTask, option, register
from hiermem.eval.tasks.pg19 import BookTask, books

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel

NEEDLES = 4
LEAST_KEPT = 16
"""Tokens that a policy needs for the sinks and something of its own."""
KINDS = ("locker", "vault", "safe", "gate", "cabin", "wagon")
SENTENCE = "The code of {kind} {number} is {code}."
QUESTION = "What is the code of {kind} {number}?"
LEAD = "The code of {kind} {number} is"


@dataclass(frozen=True)
class Example:
    """A text with four codes, the question for one of them, and how its answer begins."""

    text: str
    question: str
    lead: str
    answer: str


def examples(haystacks: Sequence[Haystack], length: int, count: int, seed: int) -> list[Example]:
    """``count`` texts of about ``length`` tokens, from the haystacks in turn.

    Raises:
        InputError: a haystack is shorter than ``length`` tokens.
    """
    rng = random.Random(f"{seed}/{length}")
    found = []
    for index in range(count):
        text = haystacks[index % len(haystacks)].cut(length, rng)
        kind, needle = rng.choice(KINDS), rng.randrange(NEEDLES)
        found.append(with_codes(text, kind, rng)[needle])
    return found


def with_codes(text: str, kind: str, rng: random.Random) -> list[Example]:
    """``text`` with a code hidden in every quarter, as one example for each of them."""
    codes = [str(rng.randrange(10000, 100000)) for _ in range(NEEDLES)]
    depths = [(needle + rng.random()) / NEEDLES for needle in range(NEEDLES)]
    names = [{"kind": kind, "number": number + 1} for number in range(NEEDLES)]
    sentences = [SENTENCE.format(**name, code=code) for name, code in zip(names, codes, strict=True)]
    whole = hidden(text, sentences, depths)
    return [
        Example(whole, QUESTION.format(**name), LEAD.format(**name), f" {code}")
        for name, code in zip(names, codes, strict=True)
    ]


@register
@dataclass(frozen=True, kw_only=True)
class Needles(MethodTask, BookTask):
    """Four numbered codes in real text, one asked for after the text was pruned to a share of its tokens.

    The share counts all tokens before the question, codes and prompt included.

    Examples:

        hiermem eval needles --data pg19 --policy attention --keep 0.25 --length 2000 --limit 100

        hiermem eval needles --data pg19 --limit 100 --dump prompts.jsonl
    """

    name = "needles"
    title = "Needles"
    headline = "nll"
    lower_is_better = True
    told = ("limit", "prompts")
    model_options = ("policy", "policy_set", "chunk", "positions", "evictor")

    method: str = option(
        "pruned",
        help="pruned: without recall, by the policy while it reads; compressed: once all was read, as "
        "kvpress does; full: all kept; hiermem: with recall.",
        alias="--system",
    )
    keep: float = option(0.25, help="Share of the text that is kept.", least=0.0, most=1.0)
    length: int = option(2000, help="Tokens of each text.", least=1)
    limit: int = option(100, help="Number of texts.", least=1)
    seed: int = option(0, help="Seed of everything that is drawn at random.")
    dump: Path | None = option(None, help="Write the prompts to this JSONL file, run nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget < LEAST_KEPT:
            raise InputError(
                f"{self.keep} of {self.length} tokens is too little to keep: raise --keep or --length."
            )

    @property
    def budget(self) -> int:
        """Tokens that are kept of each text."""
        return round(self.keep * self.length)

    @classmethod
    def methods(cls) -> tuple[str, ...]:
        from hiermem.eval.methods import Compressed, Full, HierMem, Pruned

        return (Pruned.name, Compressed.name, Full.name, HierMem.name)

    def chosen_options(self) -> dict[str, Any]:
        """The share that is kept, where the method takes one."""
        from hiermem.eval.methods import METHODS

        return {"keep": self.keep} if "keep" in METHODS[self.method].takes else {}

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same with a budget of the share that is kept."""
        return super().configure(config).with_working(budget=self.budget)

    def load(self, config: HierMemConfig) -> dict[str, str]:
        """Texts of all books, by their ids."""
        check_prompt_file(self.dump)
        return books(self.data, self.split, None, None)

    def settings(self, data: dict[str, str], config: HierMemConfig) -> dict[str, Any]:
        settings = {"books": list(data), "system": self.method, "keep": self.keep}
        return settings | {"length": self.length, "limit": self.limit, "seed": self.seed}

    def examples(self, model: HierMemModel, data: dict[str, str]) -> list[Example]:
        """The texts and questions of this seed, from the books in turn."""
        haystacks = [Haystack(model.tokenizer, text) for text in data.values()]
        return examples(haystacks, self.length, self.limit, self.seed)

    def rows(self, model: HierMemModel, data: dict[str, str], log: ResultLog) -> dict[str, Any]:
        """Negative log-likelihood per token of the right code, exact match, and the share of tokens kept."""
        from tqdm.auto import tqdm

        method = self.new_method(model)
        bar = tqdm(self.examples(model, data), desc="needles", disable=None, delay=2)
        rows = [log.row(str(index), _row, model, method, example) for index, example in enumerate(bar)]
        return {**means(rows, "nll", "exact", "kept"), "examples": rows}

    @property
    def exported(self) -> Path | None:
        return self.dump

    def export(self, model: HierMemModel, data: dict[str, str]) -> int:
        """Write the prompts as JSON lines, so that other libraries can be asked the very same.

        Each has ``context`` (what may be compressed), ``question`` (what follows) and ``answer``.
        """
        assert self.dump is not None
        prompts = (
            {**prompt_parts(model, each.text, each.question, each.lead), "answer": each.answer}
            for each in self.examples(model, data)
        )
        return write_prompts(self.dump, prompts)

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        """Also on the first prompts alone, as many as the shortest run has: those are the same for all."""
        fewest = min(report["n"] for report in reports)
        rows = []
        by_name = labelled(reports, family_of, (*cls.told, "keep", "budget"))
        for name, report in sorted(
            by_name, key=lambda pair: (pair[1]["config"]["keep"], pair[1]["metrics"]["nll"])
        ):
            metrics, intervals = report["metrics"], report.get("intervals", {})
            scores = [cell(metrics[score]) + between(intervals.get(score)) for score in ("nll", "exact")]
            first_examples = report.get("examples", ())[:fewest]
            first = sum(example["nll"] for example in first_examples) / fewest if first_examples else None
            first = metrics["nll"] if report["n"] == fewest else first
            rows.append([name, report["config"]["keep"], *scores, first, metrics.get("kept"), report["n"]])
        header = [
            "system",
            "keep",
            "NLL per answer token",
            "exact",
            f"NLL of the first {fewest}",
            "kept",
            "n",
        ]
        return table(header, rows)


def _row(model: HierMemModel, method: Method[Any], example: Example) -> dict[str, Any]:
    from hiermem.eval.methods import PrefilledContext
    from hiermem.eval.scoring import score_answer

    context = method.read(example.text)
    kept = None
    if isinstance(context, PrefilledContext):
        kept = context.working.cache.mean_tokens / context.working.num_tokens[0]
    score = score_answer(model.reader, method.prompt(context, example.question), example.answer, example.lead)
    return {"nll": float(score.nll.mean()), "exact": score.exact, "kept": kept}
