"""A writer of a library that is killed over and over: python tests/library_stops.py KILLS [SEED].

As a command it forks a writer, kills it at any moment, looks at what is left, and goes on, so many times.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from readers import reader

from hiermem.documents import Document, document_of_text
from hiermem.library import Library
from hiermem.model import HierMemModel

NAMES = ("harbour", "mill", "ferry")


def version_of(name: str, number: int) -> Document:
    """A document whose text tells its name and version."""
    words = " ".join(f"{name} entry {number} line {line} says {line * number % 97}." for line in range(12))
    return document_of_text(f"{name}.txt", f"The {name} is number {number}.\n\n{words}\n")


def write_for_ever(path: Path, model: HierMemModel, seed: int) -> None:
    """Add and remove; each change is told on standard output before it begins and when it is done."""
    draw, library = random.Random(seed), Library.open(path, model, index=True)
    while True:
        name, number = draw.choice(NAMES), draw.randrange(1000)
        if draw.random() < 0.3 and any(entry.name == f"{name}.txt" for entry in library.documents()):
            _tell("removing", name, -1)
            library.remove(f"{name}.txt")
            _tell("removed", name, -1)
        else:
            _tell("adding", name, number)
            library.add_document(version_of(name, number), progress=False)
            _tell("added", name, number)


def _tell(event: str, name: str, number: int) -> None:
    os.write(1, f"{event} {name} {number}\n".encode())


class Expected:
    """Numbers that each document may have after what a killed writer has told; -1: it is not there."""

    def __init__(self) -> None:
        self._numbers: dict[str, set[int]] = {name: {-1} for name in NAMES}

    def told(self, lines: Iterable[str]) -> None:
        """Take in what a writer has told; a line that was cut was not told."""
        for event, name, number in (line.split() for line in lines if line.endswith("\n")):
            done = event in ("added", "removed")
            self._numbers[name] = {int(number)} if done else self._numbers[name] | {int(number)}

    def check(self, path: Path, model: HierMemModel) -> None:
        """Refuse a library that is anything else, or damaged."""
        with Library.open(path, model) as library:
            assert library.verify() == []
            present = {entry.name for entry in library.documents()}
            for name in NAMES:
                possible = {n: None if n == -1 else version_of(name, n).text for n in self._numbers[name]}
                text = library.text(f"{name}.txt") if f"{name}.txt" in present else None
                assert text in possible.values(), (name, text, possible)
                self._numbers[name] = {number for number, other in possible.items() if other == text}
                if text is not None:
                    assert library.ask(f"Which number is the {name}?", documents=[f"{name}.txt"]).found


def _forked(path: Path, model: HierMemModel, seed: int, seconds: float) -> list[str]:
    """Lines that a writer has told until it was killed."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        os.dup2(writing, 1)
        write_for_ever(path, model, seed)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(reading, encoding="utf-8") as told:
        return told.readlines()


def main(kills: int, seed: int) -> None:
    """Kill writers so many times."""
    model, draw, expected, done = reader(), random.Random(seed), Expected(), 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "library")
        Library.open(path, model, index=True).close()
        for kill in range(kills):
            lines = _forked(path, model, seed + kill, 0.05 + 0.4 * draw.random())
            done += len(lines)
            expected.told(lines)
            expected.check(path, model)
    sys.stdout.write(f"{kills} kills, {done} lines told, nothing wrong or lost.\n")


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    else:
        write_for_ever(Path(sys.argv[1]), reader(), int(sys.argv[2]))
