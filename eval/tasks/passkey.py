"""Pass key: a five-digit number in one sentence somewhere in real text, asked for at the end."""

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hiermem.model import HierMemModel

SENTENCE = "The pass key is {key}. Remember it. "
QUESTION = "What is the pass key?"
_SENTENCE_END = re.compile(r"[.!?][\"'”’]?\s+")


@dataclass(frozen=True)
class Example:
    """A text that holds the sentence at about ``depth`` (0 to 1), and its key."""

    text: str
    key: str
    depth: float


def examples(model: "HierMemModel", haystack: str, length: int, count: int, seed: int) -> list[Example]:
    """``count`` texts of ``length`` tokens cut from the haystack, depths evenly spread.

    Raises:
        InputError: the haystack is shorter than ``length`` tokens.
    """
    encoded = model.tokenizer(haystack, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    spans = encoded.offset_mapping
    if length < 32 or len(spans) < length:
        raise InputError(
            f"The haystack has {len(spans)} tokens, so no text of {length} tokens can be cut from it: "
            f"give lengths from 32 to {len(spans)}."
        )
    draw = random.Random(f"{seed}/{length}")
    made = []
    for index in range(count):
        first = draw.randrange(len(spans) - length + 1)
        text = haystack[spans[first][0] : spans[first + length - 1][1]]
        depth, key = (index + 0.5) / count, str(draw.randrange(10000, 100000))
        ends = [match.end() for match in _SENTENCE_END.finditer(text)] or [len(text)]
        place = min(ends, key=lambda end: abs(end - depth * len(text)))
        made.append(Example(text[:place] + SENTENCE.format(key=key) + text[place:], key, depth))
    return made


def is_right(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key."""
    number = re.search(r"\d+", answer)
    return number is not None and number.group() == key


def evaluate(
    model: "HierMemModel", haystack: str, lengths: "Sequence[int]", count: int, seed: int
) -> dict[str, Any]:
    """Accuracy of the greedy answer for each length."""
    from tqdm.auto import tqdm

    sets = {length: examples(model, haystack, length, count, seed) for length in lengths}
    rows = []
    with tqdm(total=len(lengths) * count, desc="pass key", disable=None, delay=2) as bar:
        for length, made in sets.items():
            right = found = 0
            for example in made:
                memory = model.read(example.text, progress=False)
                answer = model.ask(memory, QUESTION, max_new_tokens=16)
                right += is_right(answer.text, example.key)
                found += any(example.key in source.text for source in answer.sources)
                bar.update()
            rows.append({"length": length, "accuracy": right / count, "recalled": found / count, "n": count})
    mean = sum(row["accuracy"] for row in rows) / len(rows)
    return {"metrics": {"accuracy": mean}, "rows": rows, "n": len(rows) * count}
