"""HashHop (Magic, 2024; github.com/magicproduct/hash-hop): chains of random hashes, followed so many hops.

As published: hashes of 16 random letters; a chain of so many hops is as many assignments, ``a = b`` and,
where it ends, ``b = 'c'``; the assignments of all chains stand in a text in a random order; asked for the
first hash of a chain, a model names the last at once, without the hashes between.

What differs: the published models are trained on the task, ours are pretrained and get it in words, with
the beginning of the completion, ``a = '``, before the answer; each question is asked for itself, not
several in one completion; lengths are counted in tokens, not in characters.
"""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.tasks.base import option, register
from hiermem.eval.tasks.documents import Document, Question
from hiermem.eval.tasks.grid import GridTask, Place
from hiermem.text import encode

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

LETTERS = 16
"""Letters of a hash."""


@register
@dataclass(frozen=True, kw_only=True)
class HashHop(GridTask):
    """HashHop: follow a chain of random hashes through shuffled assignments to its end.

    Examples:

        hiermem eval hashhop --lengths 1000,8000 --hops 1,2 --limit 10 --seed 1

        hiermem eval hashhop --lengths 4000 --hops 1 --method full --json
    """

    name = "hashhop"
    title = "HashHop"
    across = "hops"
    by = "hops"

    hops: tuple[int, ...] = option((1, 2), help="Assignments of a chain, comma-separated.")
    limit: int = option(10, help="Texts of so many hops and of a length.", least=1)
    questions: int = option(5, help="Chains that are asked for in a text.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.hops) < 1:
            raise InputError("--hops takes numbers from 1 on.")

    def documents(self, model: HierMemModel, data: None) -> list[Document]:
        """The texts of every number of hops and length, each with its questions."""
        return [self._document(model.tokenizer, place) for place in self.places()]

    def _document(self, tokenizer: Any, place: Place) -> Document:
        rng = random.Random(f"{self.seed}/{place}")
        chains = chains_of(tokenizer, place.value, place.length, rng)
        if len(chains) < self.questions:
            raise InputError(
                f"A text of {place.length} tokens holds {len(chains)} chains of {place.value} hops: raise "
                f"--lengths or lower --questions."
            )
        lines = [line for chain in chains for line in assignments(chain)]
        rng.shuffle(lines)
        questions = [
            Question(
                key=f"{place}/{at}",
                text=f"Follow the assignments from {chain[0]} to the end. What is the last value?",
                lead=f"{chain[0]} = '",
                answers=(chain[-1],),
                about=self.about(place),
            )
            for at, chain in enumerate(rng.sample(chains, self.questions))
        ]
        return Document("\n".join(lines), questions)

    def is_right(self, question: Question, output: str) -> bool:
        """Whether the first run of letters is the last hash of the chain."""
        letters = re.search(r"[A-Za-z]+", output)
        return letters is not None and letters.group() in question.answers


def chains_of(tokenizer: Any, hops: int, length: int, rng: random.Random) -> list[list[str]]:
    """As many chains of ``hops + 1`` hashes as ``length`` tokens of assignments hold."""
    chains: list[list[str]] = []
    tokens = 0
    while True:
        chain = ["".join(rng.choices(string.ascii_letters, k=LETTERS)) for _ in range(hops + 1)]
        tokens += len(encode(tokenizer, "".join(f"{line}\n" for line in assignments(chain))))
        if tokens > length:
            return chains
        chains.append(chain)


def assignments(chain: list[str]) -> list[str]:
    """The lines of a chain; quotes mark its end."""
    *lines, last = pairwise(chain)
    return [*(f"{key} = {value}" for key, value in lines), f"{last[0]} = '{last[1]}'"]
