"""Text of PDF pages made readable: pure functions, from lines to text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from hiermem.documents.characters import plain_characters
from hiermem.documents.pdf_layout import goes_on, paragraphs
from hiermem.documents.pdf_lines import HYPHEN, Line

_LEAST_PAGES = 3  # on which a running head repeats
_EDGE = 3  # lines at the top and at the bottom among which running heads are looked for

_FORMS = re.compile("[\ufb00-\ufb4f\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
_NUMBER = re.compile(r"\d+")
_ROMAN = re.compile(r"[ivxlc]+")
_CUT = re.compile(r"[^\W\d_][-\u2010\u00ad]$")  # a letter and a hyphen at a line's end
_FIRST_WORD = re.compile(r"\s*([\w'’]+(?:[-\u2010][\w'’]+)*\S*)\s*(.*)", re.S)
_LAST_WORD = re.compile(r"[\w'’]+(?:[-\u2010][\w'’]+)*$")
_WORDS = re.compile(r"[^\W\d_]+(?:[-\u2010'’][^\W\d_]+)*")
_LETTERS = re.compile(r"[\w'’]+")
_LONGEST_WORD = 100
_CONJUNCTIONS = frozenset(("and", "und", "oder", "bis"))


def spelled_out(text: str) -> str:
    """The text with ligatures and letters in the form of their place in a word as common letters."""
    return _FORMS.sub(lambda form: unicodedata.normalize("NFKC", form[0]).strip(), text)


def cleaned(line: Line) -> Line:
    """The line without characters that are no text; a hyphen that cuts its last word stays marked."""
    mark = HYPHEN if line.text.endswith(HYPHEN) else ""
    return replace(line, text=spelled_out(plain_characters(line.text)).strip() + mark)


def without_running_heads(pages: Sequence[Sequence[Line]]) -> list[list[Line]]:
    """The pages without running heads and page numbers.

    These are the outermost lines of a page that are equal, but for digits, on three pages or more and on at
    least half of those with text, or of those with even or odd numbers.
    """
    edges = [_edges(lines) for lines in pages]
    repeated = [_repeated(edges), _repeated(edges[::2]), _repeated(edges[1::2])]
    kept = []
    for index, (lines, edge) in enumerate(zip(pages, edges, strict=True)):
        running = _outermost(edge, repeated[0] | repeated[1 + index % 2])
        kept.append([line for at, line in enumerate(lines) if at not in running])
    return kept


def _edges(lines: Sequence[Line]) -> list[list[tuple[str, int]]]:
    """Words of the lines at the top and at the bottom of a page say but for digits, and their indices."""
    order = sorted(range(len(lines)), key=lambda index: -lines[index].base)
    keys = [(_key(lines[at].text), at) for at in order[:_EDGE] + order[-_EDGE:]]
    return [keys[:_EDGE], keys[: -_EDGE - 1 : -1]]


def _outermost(edges: list[list[tuple[str, int]]], repeated: set[str]) -> set[int]:
    """Indices of the lines from each edge of a page on that are repeated; of equal ones the first alone.

    A number over the page number belongs to the text.
    """
    found: dict[str, int] = {}
    for edge in edges:
        for key, at in edge:
            if key not in repeated or found.setdefault(key, at) != at:
                break
    return {*found.values()}


def _key(text: str) -> str:
    key = _NUMBER.sub("#", " ".join(text.casefold().split()))
    return "#" if _ROMAN.fullmatch(key) else key


def _repeated(pages: Sequence[list[list[tuple[str, int]]]]) -> set[str]:
    with_text = sum(any(edges) for edges in pages)
    counts = Counter(key for edges in pages for key in {key for edge in edges for key, _ in edge})
    return {key for key, count in counts.items() if count >= _LEAST_PAGES and 2 * count >= with_text}


class Vocabulary:
    """Words of a document, which tell whether a word that a line cut in two has a hyphen of its own.

    Args:
        lines: of the document.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self._words: set[str] = set()
        for line in lines:
            # The last word of a line may be cut.
            found = _WORDS.findall(line.text.removesuffix(HYPHEN))
            self._words.update(word.casefold() for word in (found[:-1] if _is_cut(line.text) else found))

    def joined(self, head: str, tail: str) -> str:
        """A word from its two halves.

        No rule tells "exam-ple" from "well-known". The halves are one word if that stands elsewhere in the
        document, and keep the hyphen if the hyphenated word does. Where neither does, they are one word,
        except before a capital letter.
        """
        first, second = _LETTERS.findall(head)[-1:], _LETTERS.findall(tail)[:1]
        one, hyphenated = ("".join(first + second)).casefold(), "-".join(first + second).casefold()
        if one in self._words:
            return head + tail
        if hyphenated in self._words or tail[:1].isupper():
            return f"{head}-{tail}"
        return head + tail


def _is_cut(text: str) -> bool:
    return text.endswith(HYPHEN) or _CUT.search(text) is not None


def marked(line: Line, after: Line) -> Line:
    """The line with its hyphen marked where it cuts a word: between a letter and a small one."""
    if _CUT.search(line.text) and after.text[:1].islower():
        return replace(line, text=line.text[:-1] + HYPHEN)
    return line


def dehyphenated(lines: Sequence[Line], vocabulary: Vocabulary) -> list[str]:
    """The texts of lines that follow one another; a word that was cut ends the line on which it begins."""
    texts: list[str] = []
    for line in lines:
        text = line.text
        if texts and texts[-1].endswith(HYPHEN):
            head, found = texts.pop()[:-1], _FIRST_WORD.match(text)
            if found is None or found[1].casefold() in _CONJUNCTIONS:
                texts += [f"{head}-", text]  # as in "pre- and post-war"
                continue
            last = _LAST_WORD.search(head, max(len(head) - _LONGEST_WORD, 0))
            at = len(head) if last is None else last.start()
            texts.append(head[:at] + vocabulary.joined(head[at:], found[1]))
            text = found[2]
            if not text.strip(HYPHEN):
                texts[-1] += text
                continue
        texts.append(text)
    if texts and texts[-1].endswith(HYPHEN):
        texts[-1] = texts[-1][:-1] + "-"
    return texts


def page_texts(pages: Sequence[Sequence[Line]]) -> Iterator[str]:
    """The text of each page, with the white space that divides it from the next one that has text.

    A word that is cut at the end of a page stands whole on the page on which it begins.
    """
    vocabulary = Vocabulary(line for lines in pages for line in lines)
    rest = [list(lines) for lines in pages]
    for index, lines in enumerate(rest):
        after = next((at for at in range(index + 1, len(rest)) if rest[at]), None)
        if not lines:
            yield ""
        elif after is None:
            yield _page_text(lines, vocabulary) + "\n"
        else:
            end = "\n" if goes_on(marked(lines[-1], rest[after][0]), rest[after][0]) else "\n\n"
            _join_over(lines, rest[after], vocabulary)
            yield _page_text(lines, vocabulary) + end


def _join_over(lines: list[Line], following: list[Line], vocabulary: Vocabulary) -> None:
    """Move the rest of a word that is cut at the end of a page to that page."""
    last = marked(lines[-1], following[0])
    if last.text.endswith(HYPHEN):
        texts = dehyphenated([last, following[0]], vocabulary)
        lines[-1] = replace(last, text=texts[0])
        following[:1] = [replace(following[0], text=text) for text in texts[1:]]


def _page_text(lines: Sequence[Line], vocabulary: Vocabulary) -> str:
    marks = [marked(line, after) for line, after in zip(lines, [*lines[1:], Line("")], strict=True)]
    return "\n\n".join("\n".join(dehyphenated(each, vocabulary)) for each in paragraphs(marks))
