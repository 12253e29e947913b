"""Needles: four numbered facts of one kind in real text, one of them asked after the text has been read.

What a policy keeps is decided before the question is seen, so it must keep all four.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiermem.errors import InputError
from hiermem.eval.haystack import Haystack, hidden
from hiermem.eval.methods import PrefilledContext, new_system
from hiermem.eval.metrics import means
from hiermem.eval.result_log import ResultLog
from hiermem.eval.scoring import score_answer
from hiermem.prompts import split_prompt

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

DUMPED = b'{"context": '
"""How every file of prompts begins."""

NEEDLES = 4
KINDS = ("locker", "vault", "safe", "gate", "cabin", "wagon")
SENTENCE = "The code of {kind} {number} is {code}."
QUESTION = "What is the code of {kind} {number}?"
LEAD = "The code of {kind} {number} is"


@dataclass(frozen=True)
class Example:
    """A text with four codes, the question for one of them, and how its answer begins."""

    text: str
    question: str
    lead: str
    answer: str


def examples(haystacks: Sequence[Haystack], length: int, count: int, seed: int) -> list[Example]:
    """``count`` texts of about ``length`` tokens, from the haystacks in turn.

    Raises:
        InputError: a haystack is shorter than ``length`` tokens.
    """
    draw = random.Random(f"{seed}/{length}")
    made = []
    for index in range(count):
        text = haystacks[index % len(haystacks)].cut(length, draw)
        kind, asked = draw.choice(KINDS), draw.randrange(NEEDLES)
        made.append(with_codes(text, kind, draw)[asked])
    return made


def with_codes(text: str, kind: str, draw: random.Random) -> list[Example]:
    """``text`` with a code hidden in every quarter, as one example for each of them."""
    codes = [str(draw.randrange(10000, 100000)) for _ in range(NEEDLES)]
    depths = [(needle + draw.random()) / NEEDLES for needle in range(NEEDLES)]
    names = [{"kind": kind, "number": number + 1} for number in range(NEEDLES)]
    sentences = [SENTENCE.format(**name, code=code) for name, code in zip(names, codes, strict=True)]
    whole = hidden(text, sentences, depths)
    return [
        Example(whole, QUESTION.format(**name), LEAD.format(**name), f" {code}")
        for name, code in zip(names, codes, strict=True)
    ]


def dump(model: "HierMemModel", made: Sequence[Example], path: Path) -> None:
    """Write the prompts as JSON lines, so that other libraries can be asked the very same.

    Each has ``context`` (what may be compressed), ``question`` (what follows) and ``answer``.
    """
    instruction, lines = model.config.asking.instruction, []
    for example in made:
        context, question = split_prompt(model.tokenizer, example.text, example.question, instruction)
        row = {"context": str(context), "question": f"{question}{example.lead}"}
        lines.append(json.dumps({**row, "answer": example.answer}, ensure_ascii=False) + "\n")
    try:
        path.write_text("".join(lines), "utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): check --dump.") from error


@torch.inference_mode()
def evaluate(
    model: "HierMemModel", system: str, keep: float, made: Sequence[Example], journal: ResultLog
) -> dict[str, Any]:
    """Negative log-likelihood per token of the right code, exact match, and the share of tokens kept.

    Args:
        keep: share of the text, with its codes and the prompt around it, that `pruned` and
            `compressed` keep.
    """
    from tqdm.auto import tqdm

    asked = new_system(system, model, keep)

    def row(example: Example) -> dict[str, Any]:
        context = asked.read(example.text)
        kept = None
        if isinstance(context, PrefilledContext):
            kept = context.working.cache.mean_tokens / context.working.num_tokens[0]
        score = score_answer(
            model.reader, asked.prompt(context, example.question), example.answer, example.lead
        )
        return {"nll": float(score.nll.mean()), "exact": score.exact, "kept": kept}

    bar = tqdm(made, desc="needles", disable=None, delay=2)
    rows = [journal.row(str(index), row, example) for index, example in enumerate(bar)]
    return {**means(rows, "nll", "exact", "kept"), "examples": rows}
