"""RULER (arXiv 2404.06654): 13 synthetic tasks of any length, by the names of the published suite.

Definitions, sentences of the prompts, tokens of an answer and scores are facts of the benchmark, as published
at github.com/NVIDIA/RULER; the generators are our own. What differs from the published suite:

- the haystack of essays is any text that is given, cut at places drawn at random, in place of Paul Graham's
  essays from their beginning;
- the question-answering tasks take paragraphs and questions of XQuAD (English; a part of SQuAD) and of
  Natural Questions in place of SQuAD and HotpotQA, with paragraphs drawn at random around the right one;
- instructions that stand before the text are the beginning of the document, and those that stand behind it
  are its end, so that every method reads them alike; the question is then asked in hiermem's own prompt,
  which begins it with "Question:";
- of common words, more than the list holds are pairs of an adjective and a noun.
"""

from collections.abc import Iterable, Mapping

from hiermem.eval.ruler.base import Example, Family, Place, Sources, fitted
from hiermem.eval.ruler.niah import Needles
from hiermem.eval.ruler.questions import Paragraphs
from hiermem.eval.ruler.variables import Variables
from hiermem.eval.ruler.words import CommonWords, FrequentWords

RULER: Mapping[str, Family] = {
    "niah_single_1": Needles(haystack="noise"),
    "niah_single_2": Needles(haystack="essay"),
    "niah_single_3": Needles(haystack="essay", values="uuids"),
    "niah_multikey_1": Needles(haystack="essay", keys_hidden=4),
    "niah_multikey_2": Needles(haystack="needle"),
    "niah_multikey_3": Needles(haystack="needle", keys="uuids", values="uuids"),
    "niah_multivalue": Needles(haystack="essay", values_each=4),
    "niah_multiquery": Needles(haystack="essay", keys_hidden=4, keys_asked=4),
    "vt": Variables(),
    "cwe": CommonWords(),
    "fwe": FrequentWords(),
    "qa_1": Paragraphs("xquad"),
    "qa_2": Paragraphs("nq"),
}
"""Every task by its published name, with its published settings."""

_DIFFERENCES = {
    "haystack": "essays are cut from the haystack that is given, in place of Paul Graham's",
    "xquad": "qa_1 asks questions of XQuAD in place of SQuAD, one paragraph of which is right",
    "nq": "qa_2 asks questions of Natural Questions in place of HotpotQA, one paragraph of which is right",
}
"""Parts of the suite that are replaced, by what a task needs."""


def differences(tasks: Iterable[str]) -> list[str]:
    """Parts of the published suite that are replaced in these tasks, to stand beside every result."""
    needed = {RULER[task].source for task in tasks}
    return [words for source, words in _DIFFERENCES.items() if source in needed]


__all__ = ["RULER", "Example", "Family", "Place", "Sources", "differences", "fitted"]
