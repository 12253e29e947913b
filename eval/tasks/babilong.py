"""Facts in a haystack: stories of bAbI kind scattered in book text, after BABILong (arXiv 2406.10149).

The stories come from a small world of our own, simulated from a seed: people walk between places, take
and hand over things; places lie in directions from one another. Five classic kinds of question follow
from what happened (bAbI, arXiv 1502.05698): one, two and three supporting facts, and relations with two and
three arguments. Each story has names of its own, so that one text holds many of them and is read once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.documents import read_document
from hiermem.errors import InputError
from hiermem.eval.haystack import SHORTEST, Haystack, hidden
from hiermem.eval.metrics import accuracy, bootstrap
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, by_length
from hiermem.eval.tasks.base import AnswerTask, option, register

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.methods import Method
    from hiermem.model import HierMemModel

QUESTIONS = ("one fact", "two facts", "three facts", "two arguments", "three arguments")
_PEOPLE = """
Mary John Sandra Daniel Julie Bill Fred Jeff Emily Antoine Sumit Yann Bernhard Greg Lily Brian Jason Winona
Gertrude Jessica Hannah Oscar Nadia Pedro Ingrid Kofi Mei Ravi Tomas Zoe Aisha Bruno Clara Dmitri
""".split()
_PLACES = """
kitchen garden office bathroom bedroom hallway cellar attic stable library barn chapel pantry orchard workshop
bakery harbour tower market school museum station theatre laundry nursery veranda courtyard greenhouse armoury
cloister foundry gallery infirmary jetty kennel larder mill observatory parlour quarry
""".split()
_THINGS = """
apple football milk lantern umbrella violin compass ladder kettle mirror basket hammer candle pillow notebook
scarf teapot telescope suitcase trumpet needle bucket saddle anchor broom cushion drum easel
""".split()
_DIRECTIONS = ("east", "north", "south", "west")


@dataclass(frozen=True)
class Story:
    """A few facts in order, a question about them, how its answer begins, and the word it goes on with.

    Attributes:
        kind: one of `QUESTIONS`.
    """

    kind: str
    facts: tuple[str, ...]
    question: str
    lead: str
    answer: str


class Names:
    """Names that are given out once each, so that no two stories of a text share one."""

    def __init__(self, rng: random.Random) -> None:
        self._left = {"people": [*_PEOPLE], "places": [*_PLACES], "things": [*_THINGS]}
        for names in self._left.values():
            rng.shuffle(names)

    def take(self, kind: str, count: int) -> list[str]:
        """``count`` names of people, places or things.

        Raises:
            InputError: there are not so many left.
        """
        names = self._left[kind]
        if len(names) < count:
            raise InputError("There are not enough names for so many stories in one text: lower --stories.")
        taken, self._left[kind] = names[:count], names[count:]
        return taken


class World:
    """Where people are, and what has happened so far."""

    def __init__(self, rng: random.Random, places: Sequence[str]) -> None:
        self.rng, self.places = rng, [*places]
        self.at: dict[str, str] = {}
        self.facts: list[str] = []

    def go(self, person: str, place: str) -> None:
        """``person`` walks to ``place``, with all that he or she holds."""
        verb = self.rng.choice(("went to", "walked to", "travelled to", "moved to"))
        self.at[person] = place
        self.facts.append(f"{person} {verb} the {place}.")

    def take(self, person: str, thing: str) -> None:
        """``person`` picks ``thing`` up."""
        verb = self.rng.choice(("took", "picked up", "grabbed"))
        self.facts.append(f"{person} {verb} the {thing} there.")

    def give(self, person: str, thing: str, receiver: str) -> None:
        """``person`` hands ``thing`` to ``receiver``."""
        verb = self.rng.choice(("gave", "handed", "passed"))
        self.facts.append(f"{person} {verb} the {thing} to {receiver}.")

    def elsewhere(self, person: str) -> str:
        """A place where ``person`` is not."""
        return self.rng.choice([place for place in self.places if place != self.at.get(person)])

    def story(self, kind: str, question: str, lead: str, answer: str) -> Story:
        """The story so far, with a question."""
        return Story(kind, tuple(self.facts), question, lead, answer)


def story(kind: str, names: Names, rng: random.Random) -> Story:
    """A story of one kind with names of its own; its length varies."""
    people, places, things = names.take("people", 2), names.take("places", 3), names.take("things", 1)
    world, thing = World(rng, places), things[0]
    if kind == "two arguments":
        return _relation(kind, places, rng)
    for person in people * rng.randint(1, 2):
        world.go(person, world.elsewhere(person))
    person, friend = rng.sample(people, 2)
    if kind == "one fact":
        return world.story(kind, f"Where is {person}?", f"{person} is in the", world.at[person])
    world.take(person, thing)
    if kind == "three arguments":
        world.give(person, thing, friend)
        gave = (f"Who gave the {thing} to {friend}?", f"The {thing} was given to {friend} by", person)
        received = (f"Who received the {thing}?", f"The {thing} was given to", friend)
        return world.story(kind, *rng.choice((gave, received)))
    before = world.at[person]
    world.go(person, world.elsewhere(person))
    world.go(friend, world.elsewhere(friend))
    now = world.at[person]
    if kind == "two facts":
        return world.story(kind, f"Where is the {thing}?", f"The {thing} is in the", now)
    question, lead = f"Where was the {thing} before the {now}?", f"Before the {now}, the {thing} was in the"
    return world.story(kind, question, lead, before)


def _relation(kind: str, places: Sequence[str], rng: random.Random) -> Story:
    first, middle, last = rng.sample(list(places), 3)
    way, way_back = rng.sample(_DIRECTIONS, 2)
    facts = (f"The {first} is {way} of the {middle}.", f"The {last} is {way_back} of the {middle}.")
    question = rng.choice(
        (
            (f"What is {way} of the {middle}?", f"{way.capitalize()} of the {middle} is the", first),
            (f"What is the {first} {way} of?", f"The {first} is {way} of the", middle),
            (f"What is {way_back} of the {middle}?", f"{way_back.capitalize()} of the {middle} is the", last),
        )
    )
    return Story(kind, facts, *question)


@dataclass(frozen=True)
class Document:
    """A text with the facts of several stories in it."""

    text: str
    stories: list[Story]


def document(haystack: Haystack, length: int, rounds: int, rng: random.Random) -> Document:
    """Book text with ``rounds`` stories of each kind, each in its order: ``length`` tokens with the stories.

    Args:
        length: 0 gives the stories alone.

    Raises:
        InputError: the haystack is too short, or ``length`` is for the stories.
    """
    names = Names(rng)
    stories = [story(kind, names, rng) for _ in range(rounds) for kind in QUESTIONS]
    placed = []
    for told in stories:
        depths = sorted(rng.random() for _ in told.facts)
        placed += list(zip(depths, told.facts, strict=True))
    placed.sort(key=lambda fact: fact[0])
    depths, facts = [depth for depth, _ in placed], [fact for _, fact in placed]
    taken = haystack.tokens(" ".join(facts))
    if 0 < length < taken + SHORTEST:
        raise InputError(
            f"The stories alone take {taken} tokens: give --lengths of 0 or at least {taken + SHORTEST}."
        )
    text = haystack.cut(length - taken, rng) if length else ""
    return Document(hidden(text, facts, depths).strip(), stories)


@register
@dataclass(frozen=True, kw_only=True)
class BabiLong(AnswerTask):
    """Little stories of people, places and things scattered in a long text; five kinds of question.

    Example:

        hiermem eval babi-long --haystack book.txt --lengths 1000,8000 --limit 5 --seed 1
    """

    name = "babi-long"
    title = "babi-long"

    haystack: str = option(help="Text file that the facts are scattered in.", document=True)
    lengths: tuple[int, ...] = option(
        (0, 1000, 8000, 32000), help="Text lengths in tokens, comma-separated; 0: the stories alone."
    )
    limit: int = option(4, help="Texts per length.", least=1)
    stories: int = option(2, help="Stories of each of five kinds in a text.", least=1)
    seed: int = option(0, help="Seed of everything that is drawn at random.")

    def load(self, config: HierMemConfig) -> str:
        """The text of the haystack."""
        return read_document(self.haystack)

    def texts(self, data: str) -> list[str]:
        return [data]

    def settings(self, data: str, config: HierMemConfig) -> dict[str, Any]:
        settings = {"haystack": Path(self.haystack).name, "lengths": self.lengths, "texts": self.limit}
        return settings | {
            "rounds": self.stories,
            "seed": self.seed,
            "system": self.method,
            **self.method_options(),
        }

    def rows(self, model: HierMemModel, data: str, log: ResultLog) -> dict[str, Any]:
        """Exact match and negative log-likelihood of the answer, for each length and kind of question."""
        from tqdm.auto import tqdm

        method, haystack = self.new_method(model), Haystack(model.tokenizer, data)
        places = [(length, index) for length in self.lengths for index in range(self.limit)]
        # All texts are made first: what cannot be made is refused before anything is read.
        texts = {place: self._document(haystack, *place) for place in places}
        answers: dict[int, list[list[dict[str, Any]]]] = {length: [] for length in self.lengths}
        for (length, index), text in tqdm(texts.items(), desc="babi-long", disable=None, delay=2):
            row = log.row(f"{length}/{index}", _answers, model, method, text)
            answers[length].append(row["answers"])
        rows = [{"length": length, **_summary(texts)} for length, texts in answers.items()]
        mean = sum(row["exact"] for row in rows) / len(rows)
        return {"metrics": {"exact": mean}, "rows": rows, "n": sum(row["n"] for row in rows)}

    def _document(self, haystack: Haystack, length: int, index: int) -> Document:
        return document(haystack, length, self.stories, random.Random(f"{self.seed}/{length}/{index}"))

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        return by_length(reports, "exact")


def _answers(model: HierMemModel, method: Method[Any], text: Document) -> dict[str, Any]:
    from hiermem.eval.scoring import score_answer

    context, rows = method.read(text.text), []
    for told in text.stories:
        prompt = method.prompt(context, told.question)
        score = score_answer(model.reader, prompt, f" {told.answer}", told.lead)
        rows.append({"kind": told.kind, "nll": float(score.nll.sum()), "exact": score.exact})
    return {"answers": rows}


def _summary(texts: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Means over all answers; the interval draws whole texts, whose answers hang together."""
    answers = [answer for text in texts for answer in text]
    by_text = [accuracy([answer["exact"] for answer in text]) for text in texts]
    kinds = {
        kind: accuracy([answer["exact"] for answer in answers if answer["kind"] == kind])
        for kind in QUESTIONS
    }
    nll = sum(answer["nll"] for answer in answers) / len(answers)
    exact = sum(by_text) / len(by_text)
    return {"exact": exact, "interval": bootstrap(by_text), "nll": nll, **kinds, "n": len(answers)}
