"""Words of a text as they are compared: however they were typed, printed or pointed.

Both sides of a comparison are folded alike, so that a question in plain spelling finds its passage.
"""

import re
import unicodedata

VERSION = 2
"""How words are folded now; search keys that were made with another version do not compare."""

MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e30-\u0ecd"
"""Vowel signs and accents inside words that ``\\w`` leaves out, for a character class."""

UNSPACED = "\u0e00-\u0ecd\u1000-\u109f\u1780-\u17d3\u3040-\u9fff\uac00-\ud7a3\U00020000-\U0003ffff"
"""Scripts without spaces: Thai to Burmese, Khmer, CJK, Hangul; for a character class."""

# Accents; Hebrew and Arabic points; variation selectors; the stroke that lengthens Arabic letters.
_POINTS = re.compile(
    r"[\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\ufe00-\ufe0f]"
)
_TATWEEL = "\u0640"

_IN_WORD = rf"[\w{MARKS}]"
_WORD = re.compile(rf"{_IN_WORD}+")
# Possessive, so that a search takes linear time whatever the text.
_SOFT_AT_END = re.compile(r"\u00ad(?=[^\S\n]*+\n)")
_BROKEN = re.compile(rf"(?<!{_IN_WORD})({_IN_WORD}++)[-\u2010][^\S\n]*+\n[^\S\n]*+({_IN_WORD}++)")
_SPACED = re.compile(rf"(?<!{_IN_WORD})[^\W\d_](?: [^\W\d_](?!{_IN_WORD})){{3,}}+")


def words(text: str, version: int = VERSION) -> list[str]:
    """The words of ``text``, folded.

    Args:
        version: 1 folds case and compatible characters. 2 also leaves out what is not seen (soft hyphens,
            characters without width) and points and accents, writes all digits alike, and adds words that
            are broken at the end of a line or letter-spaced as a whole.
    """
    if version == 1:
        return _WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("_", " "))
    folded = _folded(text)
    found = _WORD.findall(folded)
    found += [first + rest for first, rest in _BROKEN.findall(folded)]
    return found + [match.replace(" ", "") for match in _SPACED.findall(folded)]


def are_forms(one: str, other: str) -> bool:
    """Whether two folded words look like forms of one: `sail` and `sailed`, `story` and `stories`.

    The shorter one, but for its last letter at most, is how the longer one begins: at least 4 letters, and
    the longer one has at most 3 more. Words with digits have no forms.
    """
    short, long = sorted((one, other), key=len)
    stem = short if long.startswith(short) else short[:-1]
    alike = len(stem) >= 4 and long.startswith(stem) and len(long) <= len(stem) + 3
    return alike and not any(character.isdigit() for character in short + long)


def _folded(text: str) -> str:
    """Without case, points and what is not seen."""
    if not text.isascii():
        text = _SOFT_AT_END.sub("-", text)
        text = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFC", unicodedata.normalize("NFKD", text).translate(_FOLD))
    return text.casefold().replace("_", " ")


class _Fold(dict[int, str | None]):
    """Folded characters by code; each is found when it first occurs."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        category = unicodedata.category(character)
        folded: str | None = character
        if category == "Cf" or character == _TATWEEL or (category == "Mn" and _POINTS.match(character)):
            folded = None
        elif category == "Nd":
            folded = str(unicodedata.decimal(character))
        elif _POINTS.match(character):  # punctuation among the points
            folded = " "
        self[code] = folded
        return folded


_FOLD = _Fold()
