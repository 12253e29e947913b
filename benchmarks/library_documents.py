#!/usr/bin/env python3
"""A library beside one memory of all its documents: which finds the right document, and what adding takes.

    benchmarks/library_documents.py PUBMEDQA BOOK [--documents 200] [--questions 150] [--json]

Three of four documents are abstracts of PubMedQA, the others pieces of a book. Each abstract's question is
asked of the library and of one memory that was indexed from the same texts, one after the other; counted is
the document of the first source, and of any. Adding and removing one abstract is timed at 10 documents and at
all.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch

from hiermem import HierMemModel
from hiermem.documents import Document, document_of_text
from hiermem.eval.tasks.pubmedqa import load
from hiermem.library import Library
from hiermem.memory.state import MemoryState

PIECE = 10_000
"""Characters of a piece of the book."""


def documents_of(pubmedqa: Path, book: Path, count: int) -> tuple[list[Document], dict[str, str]]:
    """Documents, and the question of each that has one, by name."""
    items = load(pubmedqa, "test")[: count * 3 // 4]
    text = book.read_text(encoding="utf-8")
    pieces = [text[at : at + PIECE] for at in range(0, len(text), PIECE)][: count - len(items)]
    abstracts = [document_of_text(f"{item.id}.txt", item.abstract) for item in items]
    parts = [document_of_text(f"book-{number}.txt", piece) for number, piece in enumerate(pieces)]
    return [*abstracts, *parts], {f"{item.id}.txt": item.question for item in items}


def seconds_to_add(library: Library, document: Document) -> tuple[float, float]:
    """Median seconds of adding a document, and of removing it."""
    adding, removing = [], []
    for _ in range(5):
        start = time.perf_counter()
        library.add_document(document, progress=False)
        adding.append(time.perf_counter() - start)
        start = time.perf_counter()
        library.remove(document.name)
        removing.append(time.perf_counter() - start)
    return statistics.median(adding), statistics.median(removing)


def found(ranked: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, float]:
    """Share of the questions whose document is that of the first source, and of any."""
    first = sum(own[:1] == [name] for own, name in zip(ranked, names, strict=True))
    anywhere = sum(name in own for own, name in zip(ranked, names, strict=True))
    return {"first": first / len(names), "any": anywhere / len(names)}


def memory_of(model: HierMemModel, documents: Sequence[Document]) -> tuple[MemoryState, list[int]]:
    """One memory of all texts, and where each begins."""
    texts = [document.text + "\n\n" for document in documents]
    return model.index("".join(texts)), [0, *accumulate(map(len, texts))][:-1]


def measure(
    model: HierMemModel, documents: list[Document], asked: dict[str, str], folder: Path
) -> dict[str, object]:
    """All figures."""
    *documents, extra = documents
    library = Library.open(folder / "library", model, index=True)
    for document in documents[:10]:
        library.add_document(document, progress=False)
    few = seconds_to_add(library, extra)
    start = time.perf_counter()
    for document in documents[10:]:
        library.add_document(document, progress=False)
    result: dict[str, object] = {"documents": len(documents), "add_all_seconds": time.perf_counter() - start}
    many = seconds_to_add(library, extra)
    for name, one, other in (("add", few[0], many[0]), ("remove", few[1], many[1])):
        result[f"{name}_seconds"] = {"at_10": one, "at_all": other, "ratio": other / one}
    start = time.perf_counter()
    Library.open(folder / "library", model).close()
    result["open_seconds"] = time.perf_counter() - start
    if not asked:
        return result
    names = [name for name in asked if name in {document.name for document in documents}]
    prompts = [[source.document for source in library.search(asked[name], 1)] for name in names]
    result["library_search"] = found(prompts, names)
    memory, starts = memory_of(model, documents)
    place = {start: document.name for start, document in zip(starts, documents, strict=True)}
    for kind in ("library", "memory"):
        ranked = []
        for name in names:
            if kind == "library":
                ranked.append([source.document for source in library.prepare(asked[name]).sources])
            else:
                spans = [source.start for source in model.prepare(memory, asked[name]).sources]
                ranked.append([place[starts[bisect_right(starts, at) - 1]] for at in spans])
        result[kind] = found(ranked, names)
    return result | {"questions": len(names)}


def main() -> None:
    """Measure, and print a JSON object."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("pubmedqa", type=Path, help="Folder of PubMedQA.")
    parser.add_argument("book", type=Path, help="Text file.")
    parser.add_argument("--documents", type=int, default=200, help="Of the library.")
    parser.add_argument("--questions", type=int, default=150, help="At most so many; 0: times alone.")
    parser.add_argument("--json", action="store_true", help="Print one line of JSON.")
    chosen = parser.parse_args()
    documents, asked = documents_of(chosen.pubmedqa, chosen.book, chosen.documents + 1)
    asked = dict(list(asked.items())[: chosen.questions])
    model = HierMemModel.from_pretrained("smollm2", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(model, documents, asked, Path(folder))
    sys.stdout.write(json.dumps(result, indent=None if chosen.json else 1) + "\n")


if __name__ == "__main__":
    main()
