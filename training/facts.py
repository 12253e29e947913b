"""Facts of several kinds that are hidden in texts, with a question for each.

A tier that is trained on books alone may buy their style with facts; one that is trained on codes alone may
learn to keep digits. So there are several kinds, some of which share no word with what evaluations hide.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hiermem.errors import InputError
from hiermem.eval.haystack import hidden
from hiermem.eval.tasks import needles

NUMBER = needles.NEEDLES
"""Facts of a text."""

_FIRST = ("Ada", "Bruno", "Clara", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira")
_LAST = ("Abbot", "Brandt", "Castell", "Dorn", "Eklund", "Ferrer", "Gallo", "Hartog", "Ivers", "Jansen")
_OFFICES = ("captain", "doctor", "gardener", "judge", "librarian", "mayor", "notary", "organist", "pilot")
_PLACES = ("Ashby", "Berwick", "Corran", "Dunmore", "Elstow", "Farley", "Gorse Hill", "Holm", "Ivy Bridge")
_THINGS = ("bridges", "carts", "chimneys", "horses", "houses", "lamps", "mills", "orchards", "ships", "wells")


@dataclass(frozen=True)
class FactKind:
    """How facts of one kind are told and asked for.

    Attributes:
        sentence: tells a fact, with the fields `subject` and `answer`.
        question: asks for it, with `subject`.
        lead: how its answer begins, with `subject`.
        subject: draws what a fact is of.
        answer: draws what is asked for.
    """

    sentence: str
    question: str
    lead: str
    subject: Callable[[random.Random], str]
    answer: Callable[[random.Random], str]


def _digits(places: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(10 ** (places - 1), 10**places))


def _one_of(*words: Sequence[str], between: str = " ") -> Callable[[random.Random], str]:
    return lambda rng: between.join(rng.choice(part) for part in words)


def _hexadecimal(rng: random.Random) -> str:
    return f"{rng.getrandbits(32):08x}"


FACTS = {
    "pass keys": FactKind(
        "The pass key of {subject} is {answer}. Remember it.",
        "What is the pass key of {subject}?",
        "The pass key of {subject} is",
        _one_of(_PLACES),
        _digits(5),
    ),
    "names": FactKind(
        "The {subject} was called {answer}.",
        "What was the {subject} called?",
        "The {subject} was called",
        _one_of(_OFFICES, _PLACES, between=" of "),
        _one_of(_FIRST, _LAST),
    ),
    "numbers": FactKind(
        "The number of {subject} was {answer}.",
        "What was the number of {subject}?",
        "The number of {subject} was",
        _one_of(_THINGS, _PLACES, between=" in "),
        _digits(3),
    ),
    "pairs": FactKind(
        '"{subject}": "{answer}",',
        'What is the value of the key "{subject}"?',
        '"{subject}": "',
        _hexadecimal,
        _hexadecimal,
    ),
}
"""Kinds of facts by name, beside the codes of `hiermem.eval.tasks.needles`."""

CODES = "codes"
KINDS = (CODES, *FACTS)


def with_facts(text: str, kind: str, rng: random.Random) -> list[needles.Example]:
    """``text`` with a fact hidden in every quarter, as one example for each of them.

    Args:
        kind: one of `KINDS`.
    """
    if kind == CODES:
        return needles.with_codes(text, rng.choice(needles.KINDS), rng)
    told = FACTS[kind]
    answers: dict[str, str] = {}
    while len(answers) < NUMBER:
        answers[told.subject(rng)] = told.answer(rng)
    facts = [told.sentence.format(subject=subject, answer=answer) for subject, answer in answers.items()]
    whole = hidden(text, facts, [(fact + rng.random()) / NUMBER for fact in range(NUMBER)])
    found = []
    for subject, answer in answers.items():
        lead = told.lead.format(subject=subject)
        space = "" if lead.endswith('"') else " "
        found.append(needles.Example(whole, told.question.format(subject=subject), lead, space + answer))
    return found


def check_kinds(kinds: Sequence[str]) -> None:
    """Refuse kinds of facts that there are not.

    Raises:
        InputError: one is unknown, or there are none.
    """
    if not kinds or set(kinds) - {*KINDS}:
        raise InputError(f"Facts are of the kinds {', '.join(KINDS)}, not {', '.join(kinds) or 'none'}.")
