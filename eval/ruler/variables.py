"""Variable tracking: a chain of assignments in noise; all variables of one value are asked for."""

import random
import string
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from hiermem.eval.ruler.base import NOISE, Example, Family, Place, Sources, scattered

INSTRUCTION = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
QUESTION = "Find all variables that are assigned the value {value} in the text above."
LEAD = (
    " Answer: According to the chain(s) of variable assignment in the text above, {count} variables are "
    "assigned the value {value}, they are: "
)
SHOWN_LETTERS, SHOWN_NOISE = 3, 14
"""Letters of a variable in the example that is shown first, and its sentences: about 500 tokens, as
published."""


@dataclass(frozen=True)
class Variables(Family):
    """A chain of variables, each assigned the one before; an example with its answer is shown first.

    Attributes:
        hops: assignments from one variable to the next.
        letters: of a variable's name.
    """

    room: ClassVar[int] = 30

    hops: int = 4
    letters: int = 5

    def least(self, place: Place) -> int:
        return self.hops + 1

    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """See `Family`; the unit is a repetition of the noise."""
        rng = place.rng()
        shown = self._chain(SHOWN_LETTERS, SHOWN_NOISE, rng)
        question = f"Question: {shown.question}{shown.lead}{' '.join(shown.answers)}"
        chain = self._chain(self.letters, size, rng)
        text = f"{shown.text}\n{question}\n\n{chain.text}"
        return replace(chain, text=text)

    def _chain(self, letters: int, noise: int, rng: random.Random) -> Example:
        names: dict[str, None] = {}
        while len(names) <= self.hops:
            names["".join(rng.choices(string.ascii_uppercase, k=letters))] = None
        value, chain = str(rng.randrange(10000, 100000)), list(names)
        lines = [f"VAR {chain[0]} = {value}"]
        lines += [f"VAR {name} = VAR {before}" for before, name in pairwise(chain)]
        text = INSTRUCTION + "\n".join(scattered([NOISE] * noise, lines, rng))
        lead = LEAD.format(count=len(chain), value=value)
        return Example(text, QUESTION.format(value=value), lead, tuple(chain))
