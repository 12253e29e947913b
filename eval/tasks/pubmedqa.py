"""PubMedQA (Jin et al., arXiv 1909.06146) as a long-context task: M abstracts fused, then each question.

The fused form is that of HMT (arXiv 2405.06067): all contexts first, read once, and asked M times.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.methods import Method, new_system
from hiermem.eval.metrics import accuracy, bootstrap, macro_f1, perplexity
from hiermem.eval.result_log import ResultLog
from hiermem.eval.sampling import stratified
from hiermem.eval.scoring import prefill, score_answer, score_options

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

SPLITS = ("train", "test")
ALL = "all"
LABELS = ("yes", "no", "maybe")
OPTIONS = (" yes", " no", " maybe")
LEAD = "The answer is"
RIGHT = "right"
"""A system that is given the right abstract and nothing else: what perfect recall would give."""

ASKING = {"instruction": "Answer yes, no or maybe.", "passage_characters": 1800, "least_score": 0.0}
"""Settings of the prompt, chosen on the training half."""


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

    A dataset on the hub is taken as a whole (split `all`): the list of test questions is not there.

    Raises:
        InputError: the files are missing or of another shape, or there is no such split.
    """
    if hub.is_name(data):
        if split != ALL:
            raise InputError(
                f"There is no folder {data} here, and on the hub there is no list of test questions: give "
                f"the folder of ori_pqal.json and test_ground_truth.json, or --split {ALL}."
            )
        return list(hub.rows(str(data), "train", _hub_item, "pqa_labeled"))
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    try:
        everything = json.loads((data / "ori_pqal.json").read_text(encoding="utf-8"))
        test = json.loads((data / "test_ground_truth.json").read_text(encoding="utf-8"))
        ids = list(test) if split == "test" else [key for key in everything if key not in test]
        items = [_item(key, everything[key]) for key in ids]
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{data} does not hold PubMedQA in its official layout ({error}): "
            f"give the folder of ori_pqal.json and test_ground_truth.json."
        ) from error
    if not items:
        raise InputError(f"{data} holds no questions of the split {split}: give the official files.")
    return items


def _item(key: str, raw: dict) -> Item:
    abstract = _abstract(raw["CONTEXTS"])
    return _checked(Item(key, raw["QUESTION"], abstract, raw["LONG_ANSWER"], raw["final_decision"]))


def _hub_item(row: dict) -> Item:
    abstract = _abstract(row["context"]["contexts"])
    return _checked(
        Item(str(row["pubid"]), row["question"], abstract, row["long_answer"], row["final_decision"])
    )


def _abstract(paragraphs: Any) -> str:
    """One text of them; nothing where they are no paragraphs."""
    if not isinstance(paragraphs, list) or not all(isinstance(one, str) for one in paragraphs):
        return ""
    return "\n".join(paragraphs)


def _checked(item: Item) -> Item:
    """The question, if it can be asked and judged.

    Raises:
        InputError: it cannot.
    """
    texts = (item.question, item.abstract, item.long_answer)
    if not all(isinstance(text, str) and text.strip() for text in texts) or item.decision not in LABELS:
        raise InputError(
            f"The PubMedQA question {item.id} lacks a question, contexts, a long answer, or a decision among "
            f"{', '.join(LABELS)}: take it out, or give the official files."
        )
    return item


def drawn(items: Sequence[Item], limit: int | None, seed: int = 0) -> list[Item]:
    """At most ``limit`` questions, drawn with ``seed``, each decision as often as among all of them."""
    return stratified(items, lambda item: item.decision, limit, seed)


@dataclass(frozen=True)
class Fused:
    """Abstracts in one text, with the character span of each."""

    text: str
    spans: list[tuple[int, int]]


def fused(items: Sequence[Item]) -> Fused:
    """The abstracts of ``items``, in order."""
    text, spans = "", []
    for item in items:
        spans.append((len(text), len(text) + len(item.abstract)))
        text += item.abstract + "\n\n"
    return Fused(text.strip(), spans)


@torch.inference_mode()
def evaluate(
    model: "HierMemModel",
    system: str,
    items: Sequence[Item],
    together: int,
    journal: ResultLog,
    keep: float | None = None,
) -> dict[str, Any]:
    """Accuracy and macro-F1 of the decision, perplexity of the long answer, recall of the right abstract.

    Args:
        together: M, how many records are fused.
        keep: share of a text that `pruned` keeps.
    """
    from tqdm.auto import tqdm

    asked = new_system("full" if system == RIGHT else system, model, keep)
    rows = []
    with tqdm(total=len(items), desc=f"PubMedQA, M = {together}", disable=None, delay=2) as bar:
        for first in range(0, len(items), together):
            group = items[first : first + together]
            whole = fused(group)
            read = cache(asked.read)  # once, and only if a question is still open
            for item, span in zip(group, whole.spans, strict=True):
                text = item.abstract if system == RIGHT else whole.text
                rows.append(journal.row(item.id, _row, model, asked, read, text, item, span))
                bar.update()
    given, wanted = [row["given"] for row in rows], [row["wanted"] for row in rows]
    right = [one == other for one, other in zip(given, wanted, strict=True)]
    tokens = sum(row["tokens"] for row in rows)
    metrics = {
        "accuracy": accuracy(right),
        "macro_f1": macro_f1(given, wanted, LABELS),
        "long_answer_perplexity": perplexity(sum(row["nll"] for row in rows), tokens),
    }
    if all(row["recalled"] is not None for row in rows):
        metrics["recall"] = accuracy([row["recalled"] for row in rows])
    return {"metrics": metrics, "intervals": {"accuracy": bootstrap(right)}, "n": len(rows)}


def _row(
    model: "HierMemModel",
    system: Method[Any],
    read: Callable[[str], Any],
    text: str,
    item: Item,
    span: tuple[int, int],
) -> dict[str, Any]:
    prompt = prefill(model.reader, system.prompt(read(text), item.question))
    options = score_options(model.reader, prompt.fork(), OPTIONS, LEAD)
    answer = score_answer(model.reader, prompt, item.long_answer)
    recalled = None
    if prompt.sources:
        recalled = any(source.start < span[1] and source.end > span[0] for source in prompt.sources)
    return {
        "given": LABELS[options.index(max(options))],
        "wanted": item.decision,
        "scores": options,
        "nll": float(answer.nll.sum()),
        "tokens": len(answer.nll),
        "recalled": recalled,
    }
