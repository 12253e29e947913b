"""Adds to a library and removes from it until it is killed: python library_stops.py FOLDER SEED."""

import random
import sys
from pathlib import Path

from readers import reader

from hiermem.documents import Document, document_of_text
from hiermem.library import Library

NAMES = ("harbour", "mill", "ferry")


def version_of(name: str, number: int) -> Document:
    """A document whose text tells its name and version."""
    words = " ".join(f"{name} entry {number} line {line} says {line * number % 97}." for line in range(12))
    return document_of_text(f"{name}.txt", f"The {name} is number {number}.\n\n{words}\n")


def main(folder: str, seed: str) -> None:
    """Change the library for ever; each change that is done is told on a line of standard output."""
    draw, library = random.Random(int(seed)), Library.open(folder, reader(), index=True)
    while True:
        name, number = draw.choice(NAMES), draw.randrange(1000)
        if draw.random() < 0.3 and any(entry.name == f"{name}.txt" for entry in library.documents()):
            print("removing", name, -1, flush=True)  # noqa: T201
            library.remove(f"{name}.txt")
            print("removed", name, -1, flush=True)  # noqa: T201
        else:
            print("adding", name, number, flush=True)  # noqa: T201
            library.add_document(version_of(name, number), progress=False)
            print("added", name, number, flush=True)  # noqa: T201


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(exist_ok=True)
    main(*sys.argv[1:])
