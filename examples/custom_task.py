"""An evaluation task of your own in one class, run by its command; the result would join the page of results.

python examples/custom_task.py --limit 4 --json
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiermem import HierMemConfig, HierMemModel
from hiermem.cli.main import app
from hiermem.documents import read_document
from hiermem.eval.metrics import means
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks import Task, option, register


@register
@dataclass(frozen=True, kw_only=True)
class Shuffled(Task):
    """How much likelier text is than the same sentences in another order.

    Example:

        hiermem eval shuffled --text book.txt --policy window --limit 8
    """

    name = "shuffled"
    title = "Shuffled sentences"
    model_options = ("policy", "budget", "chunk")

    text: str = option("python-reference", help="A text file, or python-reference.", document=True)
    characters: int = option(1500, help="Characters of each piece of the text.", least=100)
    limit: int = option(8, help="How many pieces.", least=1)
    seed: int = option(0, help="Seed of the other order.")

    def load(self, config: HierMemConfig) -> list[str]:
        text, size = read_document(self.text), self.characters
        return [text[at : at + size] for at in range(0, len(text), size)][: self.limit]

    def texts(self, data: list[str]) -> list[str]:
        return data

    def rows(self, model: HierMemModel, data: list[str], log: ResultLog) -> dict[str, Any]:
        rows = [log.row(str(place), self.row, model, piece) for place, piece in enumerate(data)]
        return {**means(rows, "nll", "nll_shuffled"), "rows": rows}

    def row(self, model: HierMemModel, piece: str) -> dict[str, Any]:
        sentences = piece.split(". ")
        random.Random(self.seed).shuffle(sentences)
        return {"nll": nll(model, piece), "nll_shuffled": nll(model, ". ".join(sentences))}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        metrics = [[report["metrics"][name] for name in ("nll", "nll_shuffled")] for report in reports]
        return table(["in order", "shuffled"], metrics)


def nll(model: HierMemModel, text: str) -> float:
    """Mean negative log-likelihood of a token, in nats."""
    ids = model.tokenizer(text, return_tensors="pt").input_ids.to(model.device)
    return float(model(ids, labels=ids).loss)


if __name__ == "__main__":
    app(["eval", Shuffled.name, *sys.argv[1:]])
