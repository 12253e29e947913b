"""Seconds to the first token of an answer: from stored keys and values, from text, and from BM25's passages.

    benchmarks/first_token.py book.hmem questions.txt --model smollm2 --out first-token.json

The memory keeps all keys and values (`hiermem read … --set longterm.tiers.kv.keep=1`). Beside it, what
reading the question alone takes over as many cached tokens. Times are the processor's, of one thread, medians
over the questions, by turns in one process; searching and recalling count.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hiermem import HierMemModel, MemoryState
from hiermem.asking import PreparedPrompt
from hiermem.eval.methods.passages import Bm25


def measure(model: HierMemModel, memory: MemoryState, questions: list[str]) -> dict[str, Any]:
    """Seconds of each way, and what they are of the question alone."""
    found = Bm25(model)
    index, asking = found.read(memory.text), replace(model.config.asking, least_confidence=0.0)

    def own(form: str) -> Callable[[str], PreparedPrompt]:
        def prepare(question: str) -> PreparedPrompt:
            model.config.asking = replace(asking, passages=form)
            return model.prepare(memory, question)

        return prepare

    ways = {"kv": own("kv"), "text": own("text"), "bm25": lambda question: found.prompt(index, question)}
    seconds: dict[str, list[float]] = {name: [] for name in (*ways, "question alone")}
    tokens: dict[str, list[int]] = {name: [] for name in ways}
    for question in questions:
        for name, way in ways.items():
            start = time.process_time()
            prompt = way(question)
            begun = time.process_time()
            model.reader.logits(prompt.working.copy(), prompt.ids, 1)
            end = time.process_time()
            seconds[name].append(end - start)
            tokens[name].append(prompt.ids.shape[1])
            if name == "kv":
                seconds["question alone"].append(end - begun)
    alone = median(seconds["question alone"])
    rows = [
        {
            "way": name,
            "seconds": median(taken),
            "of_the_question_alone": median(taken) / alone,
            "tokens_read": median(tokens[name]) if name in tokens else median(tokens["kv"]),
        }
        for name, taken in seconds.items()
    ]
    return {"tokens": memory.tokens, "n": len(questions), "dtype": str(model.dtype), "rows": rows}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("memory", type=Path, help="folder of a saved memory")
    parser.add_argument("questions", type=Path, help="text file, a question on each line")
    parser.add_argument("--model", default="smollm2", help="the model that has read it")
    parser.add_argument("--dtype", help="as it was read with")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = HierMemModel.from_pretrained(args.model, dtype=args.dtype, device="cpu")
    questions = [line for line in args.questions.read_text("utf-8").splitlines() if line.strip()]
    with torch.inference_mode():
        report = measure(model, MemoryState.load(args.memory, model), questions)
    sys.stdout.write(json.dumps(report) + "\n")
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
