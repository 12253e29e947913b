"""Pass key: a five-digit number in one sentence somewhere in real text, asked for at the end."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.documents import read_document
from hiermem.eval.haystack import Haystack, hidden
from hiermem.eval.metrics import bootstrap
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import HIERMEM, OURS, Document, DocumentTask, Question

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.model import HierMemModel

SENTENCE = "The pass key is {key}. Remember it. "
QUESTION = "What is the pass key?"


def documents(haystack: Haystack, length: int, count: int, seed: int) -> list[Document]:
    """``count`` texts of ``length`` tokens cut from the haystack, each with its key, depths evenly spread.

    Raises:
        InputError: the haystack is shorter than ``length`` tokens.
    """
    rng = random.Random(f"{seed}/{length}")
    found = []
    for index in range(count):
        text = haystack.cut(length, rng)
        depth, key = (index + 0.5) / count, str(rng.randrange(10000, 100000))
        question = Question(
            key=f"{length}/{index}", text=QUESTION, answers=(key,), about=(("length", length),)
        )
        found.append(Document(hidden(text, [SENTENCE.format(key=key)], [depth]), [question]))
    return found


def is_right(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key."""
    number = re.search(r"\d+", answer)
    return number is not None and number.group() == key


@dataclass(frozen=True, kw_only=True)
class HaystackTask(DocumentTask):
    """A task that hides something in a long text."""

    haystack: str = option(help="Text file that something is hidden in.", document=True)

    def load(self, config: HierMemConfig) -> str:
        """The text of the haystack."""
        return read_document(self.haystack)

    def texts(self, data: str) -> list[str]:
        return [data]


@register
@dataclass(frozen=True, kw_only=True)
class PassKey(HaystackTask):
    """Find a five-digit key in a long text: greedy answer, exact match.

    Examples:

        hiermem eval passkey --haystack book.txt --lengths 1024,8192 --limit 20 --seed 1

        hiermem eval passkey --haystack book.txt --lengths 2048 --method full
    """

    name = "passkey"
    title = "Pass key"
    headline = "accuracy"
    axis = "length"
    told = ("lengths",)
    max_new_tokens = 16

    haystack: str = option(help="Text file that the sentence is hidden in.", document=True)
    lengths: tuple[int, ...] = option((1024, 8192, 32768), help="Text lengths in tokens, comma-separated.")
    limit: int = option(20, help="Examples per length.", least=1)
    seed: int = option(0, help="Seed of everything that is drawn at random.")

    def settings(self, data: str, config: HierMemConfig) -> dict[str, Any]:
        settings = {"haystack": Path(self.haystack).name, "lengths": self.lengths, "limit": self.limit}
        settings |= {"seed": self.seed, **self.method_options()}
        # Results from before there were other methods name none.
        return settings | ({} if self.method == HIERMEM else {"system": self.method})

    def documents(self, model: HierMemModel, data: str) -> list[Document]:
        """The texts of every length, each with its question."""
        haystack = Haystack(model.tokenizer, data)
        return [
            document
            for length in self.lengths
            for document in documents(haystack, length, self.limit, self.seed)
        ]

    def scores(self, question: Question, response: Response) -> dict[str, Any]:
        """Whether the answer is right and, of hiermem, whether a source holds the key."""
        (key,) = question.answers
        scores = {"right": is_right(response.text, key)}
        if self.method in OURS:
            scores["recalled"] = any(key in source.text for source in response.sources)
        return scores

    def result(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy for each length, and the mean over lengths."""
        by_length = {length: [row for row in rows if row["length"] == length] for length in self.lengths}
        names = ("right", "recalled") if "recalled" in rows[0] else ("right",)
        lines = []
        for length, answers in by_length.items():
            shares = {name: sum(row[name] for row in answers) / len(answers) for name in names}
            line = {"length": length, "accuracy": shares.pop("right"), **shares, "n": len(answers)}
            lines.append({**line, "interval": bootstrap([row["right"] for row in answers])})
        mean = sum(line["accuracy"] for line in lines) / len(lines)
        return {"metrics": {"accuracy": mean}, "rows": lines, "n": len(rows), "examples": list(rows)}
