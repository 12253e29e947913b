#!/usr/bin/env python3
"""The measurements of the page of results: those that are missing, in order of importance, two at a time.

    benchmarks/suite.py DATA OUT [--only PREFIX] [--list] [--model NAME=FOLDER] [--check]

DATA holds pg19/, pubmedqa/, nq/, xquad/, …; OUT takes the JSON files. What a command has finished is not run
again while the command is the same; `--check` runs all, so that hiermem says whether settings have changed. A
result of other settings goes to OUT/earlier. What was stopped goes on where it was. Of two suites at once,
each takes what the other has not begun.
"""

import argparse
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from measurements import PEER_PYTHON, SMOLLM2, Backbone, Measurement, all_measurements

CHANGED = "is of a run with other settings"
"""How hiermem and the scripts refuse to go on with a result of other settings."""
SMOLLM2_BYTES = 270e6
"""Of its weights: what takes as many times more takes about as many times longer."""
RECORDS = "suite"
"""Folder in that of the results, for what has finished and for what commands say."""
PATIENCE = 60.0
"""Seconds that a measurement has to end in order."""


@dataclass
class Suite:
    """Runs measurements into a folder.

    Attributes:
        out: folder of the results.
        check: run also what is finished by its command, so that other settings are noticed.
        jobs: measurements at a time.
        failed: names of measurements that failed, with their last words.
        left: names of those that another suite is at.
        stopped_by: number of the signal that stopped the suite; 0: none.
    """

    out: Path
    check: bool = False
    jobs: int = 2
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    stopped_by: int = 0
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def run(self, measurements: Sequence[Measurement]) -> int:
        """Make what is missing; returns the exit status: 0, 1 where one failed, 128 + signal."""
        (self.out / RECORDS).mkdir(parents=True, exist_ok=True)
        for measurement in (each for each in measurements if each.alone):
            self._make(measurement)
        queue = iter([each for each in measurements if not each.alone])
        workers = [threading.Thread(target=self._work, args=(queue,)) for _ in range(self.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return self._summary()

    def stop(self, number: int, _frame: object = None) -> None:
        """Handle a signal: what runs ends in order, and nothing is begun any more."""
        self.stopped_by = self.stopped_by or number
        for child in list(self._running):
            _signal(child, signal.SIGTERM)

    def is_finished(self, measurement: Measurement) -> bool:
        """Whether its file is there, made or confirmed by this very command."""
        record = self._record(measurement)
        done = record.read_text("utf-8") if record.exists() else ""
        return done == self._command(measurement) and (self.out / measurement.file).exists()

    def _work(self, queue: Iterator[Measurement]) -> None:
        while not self.stopped_by:
            with self._guard:
                measurement = next(queue, None)
            if measurement is None:
                return
            self._make(measurement)

    def _make(self, measurement: Measurement) -> None:
        """Make one, unless it is there, another suite is at it, or the suite was stopped."""
        with self._locked(measurement) as lock:
            if lock is None:
                self.left.append(measurement.name)
                return
            if self.stopped_by or (self.is_finished(measurement) and not self.check):
                return
            say(measurement.name)
            words = self._made(measurement, lock)
            if words is not None and CHANGED in words and not self.stopped_by:
                self._set_aside(measurement)
                words = self._made(measurement, lock)
            if words is None:
                self._record(measurement).write_text(self._command(measurement), "utf-8")
            elif not self.stopped_by:
                self.failed[measurement.name] = words.strip().rpartition("\n")[2]

    def _made(self, measurement: Measurement, lock: int) -> str | None:
        """Run the command; its words where it failed. It holds the lock as long as it lives."""
        log = self._record(measurement).with_suffix(".log")
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        try:
            with open(log, "wb") as file:
                child = subprocess.Popen(
                    self._words(measurement),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**threads, **os.environ},
                    pass_fds=(lock,),
                    start_new_session=True,
                )
        except OSError as error:
            return f"{measurement.words[0]} cannot be run ({error.strerror})."
        self._running.add(child)
        if self.stopped_by:  # the signal came before the child was known
            _signal(child, signal.SIGTERM)
        self._wait(child)
        self._running.discard(child)
        return None if child.returncode == 0 else log.read_text("utf-8", "replace")

    def _wait(self, child: "subprocess.Popen[bytes]") -> None:
        waited = 0.0
        while waited < PATIENCE:
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
                return
            waited += 0.2 if self.stopped_by else 0.0
        _signal(child, signal.SIGKILL)
        child.wait()

    def _record(self, measurement: Measurement) -> Path:
        """The file that says which command has finished."""
        return self.out / RECORDS / f"{measurement.name}.done"

    def _command(self, measurement: Measurement) -> str:
        return shlex.join(self._words(measurement))

    def _words(self, measurement: Measurement) -> list[str]:
        """The command with its file and folder."""
        places = {"{out}": str(self.out / measurement.file), "{folder}": str(self.out)}
        if "{smollm2}" in measurement.words:
            places["{smollm2}"] = _smollm2()
        words = list(measurement.words)
        for place, path in places.items():
            words = [word.replace(place, path) for word in words]
        return words

    def _set_aside(self, measurement: Measurement) -> None:
        """Move a result of other settings, whole or begun, where it stays."""
        (self.out / "earlier").mkdir(exist_ok=True)
        for file in (self.out / measurement.file, self.out / f"{measurement.file}.part"):
            if file.exists():
                number = 1
                while (kept := self.out / "earlier" / f"{file.name}.{number}").exists():
                    number += 1
                file.rename(kept)
                say(f"{measurement.name}: {kept} is of other settings, and measured again.")

    @contextmanager
    def _locked(self, measurement: Measurement) -> Iterator[int | None]:
        """The lock of a measurement, which is on its record; None where another suite has it."""
        with open(self._record(measurement), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield file.fileno()

    def _summary(self) -> int:
        if self.left:
            say(f"Another suite is at {', '.join(self.left)}.")
        for name, words in self.failed.items():
            say(f"{name} failed: {words} ({self.out / RECORDS / name}.log)")
        if self.stopped_by:
            say("Stopped: the same command goes on.")
            return 128 + self.stopped_by
        return 1 if self.failed else 0


def say(words: str) -> None:
    """Tell how it goes."""
    sys.stderr.write(f"{words}\n")
    sys.stderr.flush()


def _signal(child: "subprocess.Popen[bytes]", number: int) -> None:
    """Send a signal to a command and all that it has begun."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _smollm2() -> str:
    """The folder of the bundled backbone, for programs that are not hiermem."""
    from hiermem.bundled import BUNDLED_MODELS

    return str(BUNDLED_MODELS[SMOLLM2]())


def backbone_of(named: str, out: Path) -> Backbone:
    """A backbone from ``NAME=FOLDER``. Results see a link of that name, not the folder.

    Raises:
        ValueError: there is none.
    """
    name, _, folder = named.partition("=")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or name == SMOLLM2:
        raise ValueError(f"--model takes NAME=FOLDER with a name of small letters and digits, not {named!r}")
    target = Path(folder).absolute()
    if not folder or not target.is_dir():
        raise ValueError(f"there is no folder {folder!r} for --model {name}")
    link = out / "models" / name
    if link.is_symlink() and link.readlink() != target:
        raise ValueError(f"{name} was {link.readlink()} before: give another name, or remove {link}")
    if not link.is_symlink():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    return Backbone(name, str(link), max(size / SMOLLM2_BYTES, 1.0))


def chosen(measurements: Sequence[Measurement], prefixes: Sequence[str]) -> list[Measurement]:
    """Those whose names begin with one of the prefixes, and what they need; all without prefixes.

    Where kvpress is not set up, what takes it is left out, and said to be.
    """
    wanted = [each for each in measurements if not prefixes or each.name.startswith(tuple(prefixes))]
    needed = {each.needs for each in wanted}
    found = [each for each in measurements if each in wanted or each.name in needed]
    if not Path(PEER_PYTHON).exists():
        kept = [each for each in found if each.words[0] != PEER_PYTHON]
        if len(kept) < len(found):
            say("kvpress is left out: make peers sets it up.")
        return kept
    return found


def listed(suite: Suite, measurements: Sequence[Measurement]) -> str:
    """Names with estimated minutes, and which are there."""
    lines, left = [], 0.0
    for each in measurements:
        finished = suite.is_finished(each)
        left += 0.0 if finished else each.minutes * (suite.jobs if each.alone else 1)
        lines.append(f"{each.minutes:6.0f} min  {'done ' if finished else '     '}{each.name}")
    return "\n".join([*lines, f"{left / suite.jobs / 60:.1f} hours are left, {suite.jobs} at a time."])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Measure what the page of results shows and is not there yet."
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="Folder with pg19, pubmedqa, nq, …")
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder of the results.")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="Only names with it.")
    parser.add_argument("--list", action="store_true", help="Names and estimated minutes; measure nothing.")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=FOLDER", help="One more backbone."
    )
    parser.add_argument(
        "--check", action="store_true", help="Ask of finished results whether settings changed."
    )
    parser.add_argument("--jobs", type=int, default=2, help="Measurements at a time, one thread each.")
    given = parser.parse_args(arguments)
    try:
        backbones = [backbone_of(named, given.out) for named in given.model]
    except ValueError as error:
        parser.error(str(error))
    if given.jobs < 1:
        parser.error("--jobs must be at least 1")
    measurements = chosen(all_measurements(given.data, backbones), given.only)
    if not measurements:
        parser.error(f"no measurement begins with {' or '.join(given.only)}")
    suite = Suite(given.out, given.check, given.jobs)
    if given.list:
        sys.stdout.write(listed(suite, measurements) + "\n")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, suite.stop)
    return suite.run(measurements)


if __name__ == "__main__":
    sys.exit(main())
