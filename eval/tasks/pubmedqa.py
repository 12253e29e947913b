"""PubMedQA (Jin et al., arXiv 1909.06146) as a long-context task: M abstracts fused, then each question.

The fused form is that of HMT (arXiv 2405.06067): all contexts first, read once, and asked M times.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.metrics import accuracy, bootstrap, macro_f1, perplexity
from hiermem.eval.sampling import stratified
from hiermem.eval.tasks.base import Task, method_option, option, register
from hiermem.eval.tasks.documents import Document, DocumentTask, Question, overlap

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel

SPLITS = ("train", "test")
ALL = "all"
LABELS = ("yes", "no", "maybe")
OPTIONS = (" yes", " no", " maybe")
LEAD = "The answer is"
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
    if not isinstance(paragraphs, list) or not all(isinstance(text, str) for text in paragraphs):
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


@dataclass(frozen=True, kw_only=True)
class QuestionTask(Task):
    """A task on the questions of PubMedQA."""

    data: Path = option(help="Folder or file with the data, or its name on the hub.")
    split: str = option("test", help="train, test or (books) validation; all for PubMedQA from the hub.")
    limit: int | None = option(
        None,
        help="Use only so many questions, drawn at random, each decision in proportion.",
        least=1,
    )
    seed: int | None = option(None, help="Seed of what --limit draws; default: 0.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.limit is None and self.seed is not None:
            raise InputError(
                "Only what --limit leaves is drawn with a seed: give --limit, or leave --seed out."
            )

    def questions(self) -> list[Item]:
        """Those of the split, or what is drawn of them."""
        return drawn(load(self.data, self.split), self.limit, self.seed or 0)

    def part(self) -> dict[str, Any]:
        """The part of the questions that is taken, among the settings of a run."""
        # Results of all questions name no seed, as those from before there was one.
        seed = {} if self.limit is None else {"seed": self.seed or 0}
        return {"split": self.split, "limit": self.limit, **seed}


@dataclass(frozen=True, kw_only=True)
class AbstractQuestion(Question):
    """A question with its long answer."""

    long_answer: str


@register
@dataclass(frozen=True, kw_only=True)
class PubMedQA(QuestionTask, DocumentTask):
    """PubMedQA with M abstracts read first, then their questions: decision, long answer, recall.

    Examples:

        hiermem eval pubmedqa --data pubmedqa --together 50

        hiermem eval pubmedqa --data pubmedqa --together 50 --method bm25 --limit 100 --json
    """

    name = "pubmedqa"
    title = "PubMedQA, fused"
    headline = "accuracy"
    names_evidence = True

    together: int = option(10, help="M: abstracts fused into one text.", least=1)
    method: str = method_option("right (the right abstract alone)")

    def configure(self, config: HierMemConfig) -> HierMemConfig:
        """The same with this task's prompt."""
        return super().configure(config).with_asking(**ASKING)

    def load(self, config: HierMemConfig) -> list[Item]:
        """The questions, each with its abstract."""
        return self.questions()

    def texts(self, data: Sequence[Item]) -> Iterable[str]:
        return map(str, data)

    def settings(self, data: Sequence[Item], config: HierMemConfig) -> dict[str, Any]:
        return {**self.part(), "together": self.together, "system": self.method, **self.method_options()}

    def documents(self, model: HierMemModel, data: Sequence[Item]) -> list[Document]:
        """Fused abstracts with their questions."""
        found, size = [], self.together
        for first in range(0, len(data), size):
            whole = fused(data[first : first + size])
            pairs = zip(data[first : first + size], whole.spans, strict=True)
            questions = [
                AbstractQuestion(
                    key=item.id,
                    text=item.question,
                    answers=(item.decision,),
                    evidence=(span,),
                    long_answer=item.long_answer,
                )
                for item, span in pairs
            ]
            found.append(Document(whole.text, questions))
        return found

    def answer(self, method: Method[Any], context: Any, question: Question) -> dict[str, Any]:
        """The likeliest decision and the likelihood of the long answer."""
        from hiermem.eval.scoring import prefill, score_answer, score_options

        assert isinstance(question, AbstractQuestion)
        reader = method.model.reader
        prompt = prefill(reader, method.prompt(context, question.text))
        options = score_options(reader, prompt.fork(), OPTIONS, LEAD)
        answer = score_answer(reader, prompt, question.long_answer)
        (wanted,), places = question.answers, [(source.start, source.end) for source in prompt.sources]
        return {
            "given": LABELS[options.index(max(options))],
            "wanted": wanted,
            "scores": options,
            "nll": float(answer.nll.sum()),
            "tokens": len(answer.nll),
            "recalled": overlap(places, question.evidence) if places else None,
        }

    def scores(self, question: Question, response: Response) -> dict[str, Any]:
        """Nothing: answers are not generated."""
        return {}

    def result(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Accuracy and macro-F1 of decisions, perplexity of long answers, recall of the right abstracts."""
        predictions, decisions = [row["given"] for row in rows], [row["wanted"] for row in rows]
        right = [prediction == decision for prediction, decision in zip(predictions, decisions, strict=True)]
        tokens = sum(row["tokens"] for row in rows)
        metrics = {
            "accuracy": accuracy(right),
            "macro_f1": macro_f1(predictions, decisions, LABELS),
            "long_answer_perplexity": perplexity(sum(row["nll"] for row in rows), tokens),
        }
        if all(row["recalled"] is not None for row in rows):
            metrics["recall"] = accuracy([row["recalled"] for row in rows])
        return {"metrics": metrics, "intervals": {"accuracy": bootstrap(right)}, "n": len(rows)}
