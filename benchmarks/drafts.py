"""Decoding answers with drafts copied from the prompt, one token a pass, and that over a pruned prompt.

    benchmarks/drafts.py book.hmem questions.txt --model smollm2 --quantize float16 --out drafts.json

With --quantize, drafts are taken over weights in fewer bits, too. All say the same tokens after the same
prompt, as long as pruning leaves what they need. Times are the processor's, of one thread, from the first
token of an answer to its last, by turns in one process; those of all answers are added up.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hiermem import HierMemModel, MemoryState
from hiermem.answer_text import AnswerText
from hiermem.asking import PreparedPrompt
from hiermem.greedy import DraftedRow, in_step
from hiermem.quantization import quantization_config


@dataclass
class Decoded:
    """An answer but for its first token, which comes with the prompt."""

    text: str
    tokens: int
    passes: int
    seconds: float


def decoded(model: HierMemModel, prompt: PreparedPrompt, limit: int, drafts: bool) -> Decoded:
    """An answer, decoded with drafts or one token a pass."""
    prompt, text = prompt.fork(), AnswerText(model.tokenizer, model.reader.ends, limit)
    parts = (model.reader, prompt.working, prompt.ids)
    row = DraftedRow(*parts, text)
    tokens: Iterator[None] = row.tokens() if drafts else in_step(*parts, [text])
    next(tokens)
    start = time.process_time()
    count = sum(1 for _ in tokens)
    seconds = time.process_time() - start
    return Decoded(text.text, count, row.passes - 1 if drafts else count, seconds)


def measure(
    model: HierMemModel,
    memory: MemoryState,
    questions: list[str],
    limit: int,
    quantised: dict[str, HierMemModel],
) -> dict[str, Any]:
    """Tokens, passes and seconds of all answers.

    Args:
        quantised: the same model over weights in fewer bits, by their name.
    """
    prompts = [prompt for question in questions if (prompt := model.prepare(memory, question)).answerable]

    def ways_of(prompt: PreparedPrompt) -> tuple[Decoded, ...]:
        assert not any(prompt.working.num_tokens), "passages are read as text"
        pruned = replace(prompt, working=model.new_working_memory(memory.working_config))
        plain = ((prompt, limit, True), (prompt, limit, False), (pruned, limit, False))
        fewer = (decoded(twin, prompt, limit, True) for twin in quantised.values())
        return (*(decoded(model, *way) for way in plain), *fewer)

    rounds, names = [ways_of(prompt) for prompt in prompts], ("drafts", "one token a pass", "pruned")
    ways = dict(zip((*names, *quantised), zip(*rounds, strict=True), strict=True))
    seconds = {name: sum(answer.seconds for answer in answers) for name, answers in ways.items()}
    drafted = ways["drafts"]
    tokens = sum(answer.tokens for answer in drafted)
    return {
        "answers": len(prompts),
        "same_text": all(len({answer.text for answer in answers}) == 1 for answers in rounds),
        "tokens": tokens,
        "tokens_a_pass": tokens / sum(answer.passes for answer in drafted),
        "seconds": seconds,
        "ratios": {name: spent / seconds["drafts"] for name, spent in seconds.items()},
        "dtype": str(model.dtype),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("memory", type=Path, help="folder of a saved memory")
    parser.add_argument("questions", type=Path, help="text file, a question on each line")
    parser.add_argument("--model", default="smollm2", help="the model that has read it")
    parser.add_argument("--dtype", help="as it was read with")
    parser.add_argument("--quantize", help="float16 or int8: drafts over such weights, too")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="length limit of an answer")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = HierMemModel.from_pretrained(args.model, dtype=args.dtype, device="cpu")
    questions = [line for line in args.questions.read_text("utf-8").splitlines() if line.strip()]
    twins = {}
    if name := args.quantize:
        fewer = quantization_config(name, model.device)
        twins[name] = HierMemModel.from_pretrained(
            args.model, dtype=args.dtype, device="cpu", quantization_config=fewer
        )
    with torch.inference_mode():
        memory = MemoryState.load(args.memory, model)
        report = measure(model, memory, questions, args.max_new_tokens, twins)
    sys.stdout.write(json.dumps(report) + "\n")
    if args.out:
        args.out.write_text(json.dumps(report) + "\n", "utf-8")


if __name__ == "__main__":
    main()
