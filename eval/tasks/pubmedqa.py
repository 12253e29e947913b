"""PubMedQA in its official layout: `ori_pqal.json` beside `test_ground_truth.json`."""

import json
from dataclasses import dataclass
from pathlib import Path

from hiermem.errors import InputError

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Item:
    """One expert-labelled question.

    Attributes:
        abstract: its contexts, one paragraph each.
        decision: yes, no or maybe.
    """

    id: str
    question: str
    abstract: str
    long_answer: str
    decision: str


def load(data: Path, split: str) -> list[Item]:
    """The 500 official test questions, in the order of their list, or the other 500 for training.

    Raises:
        InputError: the files are missing or of another shape, or there is no such split.
    """
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    try:
        everything = json.loads((data / "ori_pqal.json").read_text(encoding="utf-8"))
        test = json.loads((data / "test_ground_truth.json").read_text(encoding="utf-8"))
        ids = list(test) if split == "test" else [key for key in everything if key not in test]
        return [_item(key, everything[key]) for key in ids]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{data} does not hold PubMedQA in its official layout ({error}): "
            f"give the folder of ori_pqal.json and test_ground_truth.json."
        ) from error


def _item(key: str, raw: dict) -> Item:
    return Item(
        id=key,
        question=raw["QUESTION"],
        abstract="\n".join(raw["CONTEXTS"]),
        long_answer=raw["LONG_ANSWER"],
        decision=raw["final_decision"],
    )
