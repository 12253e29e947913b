"""`Answer`: a text with its sources, and how a person reads them."""

from dataclasses import dataclass, field
from textwrap import shorten

from hiermem.passages import Source

NOT_FOUND = "The document does not say."
"""The answer where no passage shares a word with the question."""

_EXCERPT = 300  # characters of a source that are shown


@dataclass(frozen=True, repr=False)
class Answer:
    """An answer and the passages that were put before the question, best first.

    Attributes:
        complete: whether the answer ended by itself, not at the length limit or in a loop.
        found: whether the document has a word of the question, other than English function words, or at least
            another form of one (`hiermem.retrieval.words.are_forms`): in a passage that is shown, or, where
            the working memory stands before the question, anywhere. If not, nothing is generated and the text
            says that the document does not say, unless the working memory stands there: it may answer what
            shares no word, such as a summary. With search keys of units, it is the confidence that tells.
        confidence: how likely the document holds an answer, in 0..1: by odds from questions of Natural
            Questions that a document does and does not answer, or, where that is more and at least 0.7, the
            share of the question's words that stand together, which counts as 0.7 at least where all of its
            codes do (`SearchKey.codes`). None: there are no search keys of units, or no odds are known.
        first_token_seconds: from the question to the first token that was generated, of any of the questions
            that are answered in one batch; None: nothing was generated. Answers compare without it.
        recalled: whether the passages stood before the question as the keys and values that the document left
            (`AskConfig.passages`), not as text.
    """

    text: str
    sources: list[Source]
    complete: bool = True
    found: bool = True
    confidence: float | None = None
    first_token_seconds: float | None = field(default=None, compare=False)
    recalled: bool = False

    def __repr__(self) -> str:
        text = shorten(self.text, 80, placeholder=" …")
        end = "" if self.complete else ", cut short"
        return f"Answer({text!r}, sources: {len(self.sources)}{end})"

    def __str__(self) -> str:
        lines = [indented(self.text) + ("" if self.complete else " …")]
        if not self.found and self.text != NOT_FOUND:
            lines.append("  The document has no word of the question: the model answers by itself.")
        if self.confidence is not None:
            lines.append(f"  Confidence that the document holds an answer: {self.confidence:.2f}.")
        return "\n".join([*lines, *map(_shown, self.sources)])


def indented(text: str) -> str:
    """The text without blank lines; all lines but the first are indented by two columns."""
    return "\n  ".join(line for line in text.splitlines() if line.strip())


def _shown(source: Source) -> str:
    """The place and the beginning of a source in a line."""
    excerpt = " ".join(source.text.split())
    excerpt = excerpt if len(excerpt) <= _EXCERPT else excerpt[: _EXCERPT - 3] + "…"
    return f"  [{_place(source)}, score {source.score:.2f}] {excerpt}"


def _place(source: Source) -> str:
    """Where a source stands, in words."""
    characters = f"segment {source.segment}, characters {source.start} to {source.end}"
    page = "" if source.page is None else f"page {source.page}"
    line = "" if source.line is None or not source.document else f"line {source.line}"
    chapter = f"“{source.chapter}”" if source.chapter else ""
    return ", ".join(filter(None, (source.document, page, line, chapter, characters)))
