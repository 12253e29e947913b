"""Commands that are stopped at any moment: what is left on disk, and whether the same command goes on.

As a program: `python tests/stops.py --count 200 --alone 0`. Workers are forks of one process that has
imported everything and loaded a tiny model, so that hundreds of stops take minutes. Fresh processes are
stopped by `--count 0 --alone 20 --words 3000`: of a short text all is read before they are. With `--tier`,
keys and values are kept, two segments in a file. With `--index`, nothing goes through the backbone.
"""

import argparse
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from readers import assert_same_memory, backbone, text_of, tokenizer

from hiermem.cli import options
from hiermem.cli.assignments import with_settings
from hiermem.cli.main import main
from hiermem.cli.reading_task import ADDITION
from hiermem.errors import MemoryMissingError
from hiermem.memory.kv import tier as kv
from hiermem.memory.state import MemoryState

CHUNK = 16
SETTINGS = ["--budget", "24", "--segment", "32", "--chunk", str(CHUNK)]
SAVE_EVERY = 0.06
"""Seconds."""
NEVER = 1e6


class Clock:
    """When a worker was through with each chunk, in memory that its parent sees."""

    def __init__(self, chunks: int = 1 << 14) -> None:
        self._times = memoryview(mmap.mmap(-1, 8 * (chunks + 1))).cast("d")

    def reset(self) -> None:
        """Nothing was read yet."""
        self._times[0] = 0

    def tick(self) -> None:
        """One more chunk was read."""
        count = int(self._times[0]) + 1
        self._times[count], self._times[0] = time.monotonic(), count

    @property
    def chunks(self) -> int:
        """How many chunks were read."""
        return int(self._times[0])

    def since(self, chunks: int, now: float) -> float:
        """Seconds from when so many chunks were read until ``now``; 0 where no more were."""
        return max(now - self._times[chunks + 1], 0.0) if chunks < self.chunks else 0.0


@dataclass
class Kind:
    """A way to be stopped.

    Attributes:
        signals: sent one after the other, at most 6 ms apart.
    """

    name: str
    signals: tuple[signal.Signals, ...]


KINDS = {
    "SIGTERM": Kind("SIGTERM", (signal.SIGTERM,)),
    "SIGINT": Kind("SIGINT", (signal.SIGINT,)),
    "SIGINT twice": Kind("SIGINT twice", (signal.SIGINT, signal.SIGINT)),
    "SIGHUP": Kind("SIGHUP", (signal.SIGHUP,)),
    "SIGKILL": Kind("SIGKILL", (signal.SIGKILL,)),
}


@dataclass
class Tally:
    """Stops of one kind; ``lost`` in seconds of reading, ``chunks`` in chunks."""

    ends: Counter[int] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    lost: float = 0.0
    chunks: int = 0


class Stops:
    """Reads and appends with a tiny model, stopped and gone on with.

    Args:
        folder: an empty one to work in.
        words: of the document, and of the addition.
        tiers: assignments that switch tiers on.
        index: leave the backbone out; how much of a chunk is lost is then not known.
    """

    def __init__(
        self, folder: Path, words: int = 250, seed: int = 0, tiers: Sequence[str] = (), index: bool = False
    ) -> None:
        torch.set_num_threads(1)
        self.folder, self.random, self.clock = folder, random.Random(seed), Clock()
        backbone().save_pretrained(folder / "model")
        tokenizer().save_pretrained(folder / "model")
        self.texts = {"book": text_of(words), "more": text_of(words, seed=9)}
        for name, text in self.texts.items():
            (folder / name).write_text(text, "utf-8")
        self.tiers, self.way = list(tiers), ["--index"] if index else []
        config = options.configuration(str(folder / "model"), None, None, 24, 32, CHUNK)
        config = with_settings(config, self.tiers)
        self.reader = options.load_model(str(folder / "model"), config, None, None)
        self._count_chunks()
        self.out = folder / "memory"
        self.base, self.whole = folder / "base", folder / "whole"
        assert self.wait(self.fork("book", NEVER, self.base)) == 0
        shutil.copytree(self.base, self.whole)
        self.took = {"book": self._timed("book")}
        assert self.wait(self.fork("more", NEVER, self.whole)) == 0
        self.took["more"] = self._timed("more")
        self.expected = {"book": self.load(self.base), "more": self.load(self.whole)}

    def _count_chunks(self) -> None:
        real = self.reader.adapter.read_chunk

        def counted(*arguments: Any, **options: Any) -> Any:
            states = real(*arguments, **options)
            self.clock.tick()
            return states

        self.reader.adapter.read_chunk = counted  # type: ignore[method-assign]

    def _prepare(self, doc: str) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        if doc == "more":
            shutil.copytree(self.base, self.out)

    def _timed(self, doc: str) -> float:
        self._prepare(doc)
        start = time.monotonic()
        assert self.wait(self.fork(doc, SAVE_EVERY, self.out)) == 0
        return time.monotonic() - start

    def command(self, doc: str, save_every: float, out: Path) -> list[str]:
        """Read the book, or append more."""
        words = ["hiermem", "read", str(self.folder / doc), "--out", str(out), *SETTINGS]
        words += ["--model", str(self.folder / "model"), "--save-every", str(save_every / 60)]
        words += [word for assignment in self.tiers for word in ("--set", assignment)]
        return words + self.way + (["--append"] if doc == "more" else [])

    def fork(self, doc: str, save_every: float, out: Path) -> int:
        """The command in a fork of this process; its id."""
        self.clock.reset()
        numbers = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until the child is ready for them
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
            return child
        status = 70

        def ready() -> None:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)

        try:
            for number in numbers:
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1), os.dup2(log, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            with (
                patch("sys.argv", self.command(doc, save_every, out)),
                patch.object(options, "load_model", lambda *_: self.reader),
                patch("hiermem.cli.terminal.prepare", ready),
            ):
                main()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)

    def alone(self, doc: str, save_every: float, out: Path) -> int:
        """The command in a fresh process; its id, once it has begun."""
        self.clock.reset()
        command = [sys.executable, "-m", "hiermem.cli.main", *self.command(doc, save_every, out)[1:]]

        def listen() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

        with open(self.folder / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=listen)
        self._process = process  # whose end is waited for below
        return process.pid

    def wait(self, child: int) -> int:
        """The exit status of a child, negative where a signal ended it."""
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log = (self.folder / "log").read_text("utf-8", "replace")
        assert "Traceback" not in log, log
        return status

    def load(self, folder: Path) -> MemoryState:
        """The memory in a folder, which is sound."""
        assert MemoryState.verify(folder) == []
        return MemoryState.load(folder, self.reader)

    def once(
        self,
        kind: Kind,
        doc: str,
        tally: Tally,
        start: Callable[[str, float, Path], int],
        begun: bool = False,
    ) -> None:
        """Stop one command at a random moment, look at what is left, and go on.

        Args:
            begun: not before it has saved something.
        """
        self._prepare(doc)
        child = start(doc, SAVE_EVERY, self.out)
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while begun and b"saved" not in (self.folder / "log").read_bytes():
            assert os.waitid(os.P_PID, child, ended) is None, "it ended before it had saved anything"
            time.sleep(0.02)
        time.sleep(self.random.uniform(0, 0.9 * self.took[doc]))
        now = time.monotonic()
        for index, number in enumerate(kind.signals):
            if index:
                time.sleep(self.random.uniform(0, 0.006))
            os.kill(child, number)  # it waits for its parent even when it has ended
        status = self.wait(child)
        tally.ends[status] += 1
        self.took[doc] *= 1.01 if status else 0.95  # so that most signals come while it works
        number = int(kind.signals[0])
        assert status in (0, -number, 128 + number), status
        chunks = self._look(doc, status, tally)
        if start == self.fork and status != 0:
            lost = self.clock.since(chunks, now)
            tally.lost = max(tally.lost, lost)
            tally.chunks = max(tally.chunks, self.clock.chunks - chunks)
            if status > 0:
                assert self.clock.chunks - chunks <= 1, "more is lost than the chunk being read"
        self._go_on(doc)

    def _look(self, doc: str, status: int, tally: Tally) -> int:
        """How many chunks the memory that is left holds beyond what was there; it is whole and right."""
        expected, before = self.expected[doc], 0 if doc == "book" else self.expected["book"].tokens
        try:
            memory = self.load(self.out)
        except MemoryMissingError:
            assert doc == "book" and status != 0, "a memory that was there is gone"
            tally.left["nothing"] += 1
            return 0
        if doc == "more" and memory.text == self.texts["book"]:
            assert status != 0
            try:
                memory = self.load(self.out / ADDITION)
            except MemoryMissingError:
                tally.left["nothing"] += 1
                return 0
        elif doc == "more":
            assert memory.text == expected.text, "half of an addition stands where the memory was"
        assert expected.text.startswith(memory.text)
        ids = torch.cat([record.ids for record in memory.records()])
        assert len(ids) == memory.tokens, "working memory and records are of different moments"
        assert torch.equal(ids, torch.cat([record.ids for record in expected.records()])[: len(ids)])
        assert status != 0 or memory.tokens == expected.tokens
        tally.left["all" if memory.tokens == expected.tokens else "a part"] += 1
        return -(-(memory.tokens - before) // CHUNK)

    def _go_on(self, doc: str) -> None:
        """The same command completes what was left."""
        if doc == "book" or self.load(self.out).text == self.texts["book"]:
            assert self.wait(self.fork(doc, NEVER, self.out)) == 0, (self.folder / "log").read_text("utf-8")
        assert not (self.out / ADDITION).exists() or doc == "more"
        memory = self.load(self.out)
        assert_same_memory(memory, self.expected[doc], atol=1e-5)
        for ours, theirs in zip(memory.tiers, self.expected[doc].tiers, strict=True):
            files = zip((ours.tensors(), *ours.series()), (theirs.tensors(), *theirs.series()), strict=True)
            for mine, its in files:
                assert mine.keys() == its.keys()
                for name in mine:
                    step = 1.0 if mine[name].dtype == torch.int8 else 1e-5
                    torch.testing.assert_close(mine[name], its[name], atol=step, rtol=0.01)


def soak(stops: Stops, counts: dict[str, int], alone: int) -> dict[str, Any]:
    """Stop so many commands of every kind before they end by themselves; a summary."""
    report = {}
    for name, count in counts.items():
        for fresh, times in ((False, count), (True, alone)):
            tally = Tally()
            while tally.ends.total() - tally.ends[0] < times:
                start, doc = stops.alone if fresh else stops.fork, ("book", "more")[tally.ends.total() % 2]
                stops.once(KINDS[name], doc, tally, start, begun=fresh)
            if times:
                key = f"{name}, fresh processes" if fresh else name
                report[key] = {
                    "stops": times,
                    "ends": dict(tally.ends),
                    "left": dict(tally.left),
                    "lost seconds at most": round(tally.lost, 3),
                    "lost chunks at most": tally.chunks,
                }
                sys.stdout.write(json.dumps({key: report[key]}) + "\n")
                sys.stdout.flush()
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Stop reading and appending at random moments.")
    parser.add_argument("--count", type=int, default=200, help="stops of each kind in forked workers")
    parser.add_argument("--alone", type=int, default=20, help="stops of each kind in fresh processes")
    parser.add_argument("--words", type=int, default=250, help="of each text; fresh processes need thousands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kill", type=int, help="stops by SIGKILL; default: as many as --count")
    parser.add_argument("--tier", action="store_true", help="keep keys and values")
    parser.add_argument("--index", action="store_true", help="leave the backbone out")
    given = parser.parse_args()
    if given.tier:
        kv.GROUP = 2
    assignments = ["longterm.tiers.kv.keep=0.5"] if given.tier else []
    kills = given.count if given.kill is None else given.kill
    half = given.count // 2
    wanted = {"SIGTERM": given.count, "SIGINT": half, "SIGINT twice": half, "SIGHUP": given.count // 4}
    with tempfile.TemporaryDirectory() as name:
        stops = Stops(Path(name), given.words, given.seed, assignments, given.index)
        soak(stops, {**wanted, "SIGKILL": kills}, given.alone)
