"""Pass key: a five-digit number in one sentence somewhere in real text, asked for at the end."""

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hiermem.asking import answered
from hiermem.eval.haystack import Haystack, hidden
from hiermem.eval.methods import HierMem, new_system
from hiermem.eval.result_log import ResultLog

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    draw = random.Random(f"{seed}/{length}")
    made = []
    for index in range(count):
        text = haystack.cut(length, draw)
        depth, key = (index + 0.5) / count, str(draw.randrange(10000, 100000))
        made.append(Example(hidden(text, [SENTENCE.format(key=key)], [depth]), key, depth))
    return made


def is_right(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key."""
    number = re.search(r"\d+", answer)
    return number is not None and number.group() == key


@torch.inference_mode()
def evaluate(
    model: "HierMemModel",
    system: str,
    haystack: str,
    lengths: "Sequence[int]",
    count: int,
    seed: int,
    journal: ResultLog,
    keep: float | None = None,
) -> dict[str, Any]:
    """Accuracy of the greedy answer for each length.

    Args:
        keep: share of a text that `pruned` and `compressed` keep.
    """
    from tqdm.auto import tqdm

    asked = new_system(system, model, keep)

    def row(example: Example) -> dict[str, Any]:
        prompt = asked.prompt(asked.read(example.text), QUESTION)
        answer = answered(model.reader, prompt, max_new_tokens=16)
        scored = {"answer": answer.text, "right": is_right(answer.text, example.key)}
        if system == HierMem.name:
            scored["recalled"] = any(example.key in source.text for source in answer.sources)
        return scored

    texts = Haystack(model.tokenizer, haystack)
    sets = {length: examples(texts, length, count, seed) for length in lengths}
    rows = []
    with tqdm(total=len(lengths) * count, desc="pass key", disable=None, delay=2) as bar:
        for length, made in sets.items():
            answers = []
            for index, example in enumerate(made):
                answers.append(journal.row(f"{length}/{index}", row, example))
                bar.update()
            shares = {name: sum(a[name] for a in answers) / count for name in answers[0] if name != "answer"}
            rows.append({"length": length, "accuracy": shares.pop("right"), **shares, "n": count})
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    return {"metrics": {"accuracy": mean}, "rows": rows, "n": len(rows) * count}
