"""How well a short answer agrees with the right ones.

Normalisation and scores are those of SQuAD's official script for English (arXiv 1606.05250) and of MLQA's for
other languages (arXiv 1910.07475): lower case, no punctuation (in English ASCII's, in others all of Unicode),
no articles, one blank between tokens; Chinese characters are a token each. MLQA's script stops at Russian;
here it has no articles, as any other language that is not named.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

ENGLISH, CHINESE = "en", "zh"

_ARTICLES = {
    ENGLISH: r"\b(a|an|the)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": "ال",  # wherever it stands in a word, as in the script
}
_CHARACTER = re.compile(r"([\u4e00-\u9fa5])")


def normalised(text: str, language: str = ENGLISH) -> str:
    """A text as it is compared: its tokens with one blank between two."""
    kept = "".join(letter for letter in text.lower() if not _is_punctuation(letter, language))
    if language in _ARTICLES:
        kept = re.sub(_ARTICLES[language], " ", kept)
    if language == CHINESE:
        kept = _CHARACTER.sub(r" \1 ", kept)
    return " ".join(kept.split())


def _is_punctuation(letter: str, language: str) -> bool:
    if letter in string.punctuation:
        return True
    return language != ENGLISH and unicodedata.category(letter).startswith("P")


def exact_match(answer: str, right: Sequence[str], language: str = ENGLISH) -> bool:
    """Whether an answer is one of the right ones."""
    return best(lambda *pair: float(pair[0] == pair[1]), answer, right, language) == 1


def token_f1(answer: str, right: Sequence[str], language: str = ENGLISH) -> float:
    """Harmonic mean of precision and recall of an answer's tokens, for the right answer that fits best."""
    return best(_f1, answer, right, language)


def contains(text: str, right: Sequence[str], language: str = ENGLISH) -> bool:
    """Whether a text has the tokens of a right answer in a row."""
    return (
        best(lambda whole, part: float(bool(part) and f" {part} " in f" {whole} "), text, right, language)
        == 1
    )


def best(score: Callable[[str, str], float], text: str, right: Sequence[str], language: str) -> float:
    """The highest score of a text against any of the right ones, all normalised; 0 where there are none."""
    normal = normalised(text, language)
    return max((score(normal, normalised(answer, language)) for answer in right), default=0.0)


def _f1(answer: str, right: str) -> float:
    tokens, right_tokens = answer.split(), right.split()
    same = sum((Counter(tokens) & Counter(right_tokens)).values())
    return 2 * same / (len(tokens) + len(right_tokens)) if same else 0.0
