"""Questions about one of many numbered paragraphs."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import ClassVar

from hiermem.errors import InputError
from hiermem.eval.qa_data import Pool, load_pool
from hiermem.eval.ruler.base import Example, Family, Place, Sources

ASKED = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other "
    "words."
)
INSTRUCTION = f"{ASKED}\n\nThe following are given documents.\n\n"
LEAD = " Answer:"
PARAGRAPH = "Document {number}:\n{text}"


@dataclass(frozen=True)
class Paragraphs(Family):
    """A question about a paragraph that stands among others of its data set, drawn at random.

    Attributes:
        data: name of the data set.
    """

    room: ClassVar[int] = 32
    any_answer: ClassVar[bool] = True

    data: str

    @property
    def source(self) -> str:
        return self.data

    def least(self, place: Place) -> int:
        return 1

    def example(self, sources: Sources, place: Place, size: int) -> Example:
        """See `Family`; the unit is a paragraph. The others stand there again where there are too few."""
        rng, pool = place.rng(), sources.pools[self.data]
        asked = random.Random(f"{place.seed}/{place.task}").sample(pool.questions, len(pool.questions))
        if place.index >= len(asked):
            raise InputError(f"{place.task} has {len(asked)} questions: give --limit {len(asked)} or less.")
        question = asked[place.index]
        others = [text for index, text in enumerate(pool.paragraphs) if index != question.paragraph]
        rng.shuffle(others)
        assert question.paragraph is not None
        chosen = [pool.paragraphs[question.paragraph], *islice(cycle(others), size - 1)]
        rng.shuffle(chosen)
        shown = [PARAGRAPH.format(number=number, text=text) for number, text in enumerate(chosen, 1)]
        # The published prompt repeats what is asked for between the documents and the question.
        text = INSTRUCTION + "\n\n".join([*shown, ASKED])
        return Example(text, question.text, LEAD, question.answers)


def pools(folder: Path, names: Mapping[str, str], split: str, seed: int) -> dict[str, Pool]:
    """Paragraphs and English questions of data sets, each in a folder of its name.

    Args:
        names: data sets that are needed, each with the task that needs it.

    Raises:
        InputError: one is missing or odd: see `load_pool`.
    """
    found = {}
    for name, task in names.items():
        if not (folder / name).is_dir():
            raise InputError(f"{task} needs {name}: give --qa a folder with a folder {name}.")
        pool = load_pool(folder / name, split, seed=seed)
        questions = [each for each in pool.questions if each.answers and each.paragraph is not None]
        found[name] = Pool(pool.paragraphs, questions)
    return found
