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
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, by_length
from hiermem.eval.tasks.base import AnswerTask, option, register

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel

SENTENCE = "The pass key is {key}. Remember it. "
QUESTION = "What is the pass key?"


@dataclass(frozen=True)
class Example:
    """A text that holds the sentence at about ``depth`` (0 to 1), and its key."""

    text: str
    key: str
    depth: float


def examples(haystack: Haystack, length: int, count: int, seed: int) -> list[Example]:
    """``count`` texts of ``length`` tokens cut from the haystack, depths evenly spread.

    Raises:
        InputError: the haystack is shorter than ``length`` tokens.
    """
    rng = random.Random(f"{seed}/{length}")
    found = []
    for index in range(count):
        text = haystack.cut(length, rng)
        depth, key = (index + 0.5) / count, str(rng.randrange(10000, 100000))
        found.append(Example(hidden(text, [SENTENCE.format(key=key)], [depth]), key, depth))
    return found


def is_right(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key."""
    number = re.search(r"\d+", answer)
    return number is not None and number.group() == key


@dataclass(frozen=True, kw_only=True)
class HaystackTask(AnswerTask):
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

        hiermem eval passkey --haystack book.txt --lengths 2048 --system full
    """

    name = "passkey"
    title = "Pass key"

    haystack: str = option(help="Text file that the sentence is hidden in.", document=True)
    lengths: tuple[int, ...] = option((1024, 8192, 32768), help="Text lengths in tokens, comma-separated.")
    limit: int = option(20, help="Examples per length.", least=1)
    seed: int = option(0, help="Seed of everything that is drawn at random.")

    def settings(self, data: str, config: HierMemConfig) -> dict[str, Any]:
        settings = {"haystack": Path(self.haystack).name, "lengths": self.lengths, "limit": self.limit}
        settings |= {"seed": self.seed, **self.kept()}
        # Results from before there were other methods name none.
        return settings | ({} if self.system == "hiermem" else {"system": self.system})

    def rows(self, model: HierMemModel, data: str, log: ResultLog) -> dict[str, Any]:
        """Accuracy of the greedy answer for each length."""
        from tqdm.auto import tqdm

        from hiermem.eval.methods import new_method

        method, haystack = new_method(self.system, model, self.keep), Haystack(model.tokenizer, data)
        sets = {length: examples(haystack, length, self.limit, self.seed) for length in self.lengths}
        rows = []
        with tqdm(total=len(sets) * self.limit, desc="pass key", disable=None, delay=2) as bar:
            for length, texts in sets.items():
                answers = []
                for index, example in enumerate(texts):
                    answers.append(log.row(f"{length}/{index}", _answer, model, method, example))
                    bar.update()
                names = [name for name in answers[0] if name != "answer"]
                shares = {name: sum(answer[name] for answer in answers) / self.limit for name in names}
                rows.append({"length": length, "accuracy": shares.pop("right"), **shares, "n": self.limit})
        mean = sum(row["accuracy"] for row in rows) / len(rows)
        return {"metrics": {"accuracy": mean}, "rows": rows, "n": len(rows) * self.limit}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        return by_length(reports, "accuracy")


def _answer(model: HierMemModel, method: Method[Any], example: Example) -> dict[str, Any]:
    from hiermem.asking import answered
    from hiermem.eval.methods import HierMem

    prompt = method.prompt(method.read(example.text), QUESTION)
    answer = answered(model.reader, prompt, max_new_tokens=16)
    row = {"answer": answer.text, "right": is_right(answer.text, example.key)}
    if method.name == HierMem.name:
        row["recalled"] = any(example.key in source.text for source in answer.sources)
    return row
