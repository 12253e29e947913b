"""Stops of a reading at any moment: exceptions at any instruction, signals, kills, full disks."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
from commands import assert_refused, result, run
from readers import assert_same_memory, reader, text_of
from stops import KINDS, Stops, Tally

from hiermem.cli import reading as command
from hiermem.cli import reading_task
from hiermem.cli.reading_task import ADDITION
from hiermem.cli.signals import Stopped, stoppable
from hiermem.errors import InputError, MemoryFileError
from hiermem.loading import plainly
from hiermem.memory.state import MemoryState
from hiermem.reader import Reader
from hiermem.retrieval import disk

SMALL = ["--budget", "24", "--segment", "32", "--chunk", "16"]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# ---- exceptions


def tracing(at: int | None) -> tuple[Callable[..., Any], list[int]]:
    """A trace function that raises KeyboardInterrupt at instruction ``at`` of the package, and its count."""
    here, count = str(Path(command.__file__).parent.parent.parent), [0]
    names = ("reading.py", "state.py", "longterm.py", "store.py", "lexical.py", "working.py")

    def trace(frame: FrameType, event: str, _: object) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(here) or not file.endswith(names):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            count[0] += 1
            if count[0] == at:
                raise KeyboardInterrupt
        return trace

    return trace, count


def traced(
    take_in: Callable[[str, MemoryState], object], text: str, memory: MemoryState, at: int | None
) -> int:
    """Read, or index, under such a trace; the instructions that were counted."""
    trace, count = tracing(at)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        take_in(text, memory)
    finally:
        sys.settrace(before)
    return count[0]


@pytest.mark.parametrize("name", ["read", "index"])
def test_an_exception_at_any_instruction_leaves_one_moment(name: str) -> None:
    model, text = reader(), text_of(60)
    take_in = getattr(model, name)
    whole = take_in(text)
    total = traced(take_in, text, model.new_memory(), None)
    assert whole.segments > 3 and total > 3_000
    for at in range(50, total, total // 30):
        memory = model.new_memory()
        with pytest.raises(KeyboardInterrupt):
            traced(take_in, text, memory, at)
        ids = [record.ids for record in memory.records()]
        assert memory.tokens == sum(map(len, ids))
        assert memory.text == text[: memory.characters]
        assert len(memory.longterm.store) == len(memory.longterm.records) == memory.tokens // memory.segment
        if memory.characters < len(text):
            take_in(text[memory.characters :], memory)
        assert_same_memory(memory, whole)


def test_a_checkpoint_finds_what_was_read() -> None:
    model, text, seen = reader(), text_of(80), []
    memory = model.new_memory()

    def checkpoint() -> None:
        seen.append(memory.tokens)
        assert memory.text == text[: memory.characters]

    model.read(text, memory, checkpoint=checkpoint)
    assert len(seen) > 5 and seen == sorted(seen) and seen[-1] == memory.tokens
    assert all(tokens % 16 == 0 for tokens in seen[:-1])


# ---- signals


@pytest.fixture(scope="module")
def stops(tmp_path_factory: pytest.TempPathFactory) -> Stops:
    return Stops(tmp_path_factory.mktemp("stops"), words=120)


@pytest.mark.parametrize("doc", ["book", "more"])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_stops_a_command_it_goes_on(stops: Stops, kind: str, doc: str) -> None:
    for _ in range(2):
        stops.once(KINDS[kind], doc, Tally(), stops.fork)


def test_indexing_that_is_stopped_goes_on(tmp_path: Path) -> None:
    stops = Stops(tmp_path, words=120, index=True)
    for kind, doc in (("SIGTERM", "book"), ("SIGKILL", "book"), ("SIGTERM", "more"), ("SIGKILL", "more")):
        stops.once(KINDS[kind], doc, Tally(), stops.fork)


def test_the_first_signal_stops_and_further_ones_wait() -> None:
    before = signal.getsignal(signal.SIGTERM)
    steps: list[str] = []

    def command() -> None:
        with stoppable() as stop, stop.held():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            steps.append("saved")
        steps.append("never here")

    with pytest.raises(Stopped) as stopped:
        command()
    assert steps == ["saved"]
    assert stopped.value.status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_is_done_is_not_stopped() -> None:
    with stoppable() as stop:
        with stop.held():
            os.kill(os.getpid(), signal.SIGHUP)
            stop.done()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


def test_signals_that_were_ignored_stay_ignored_and_threads_have_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            handlers = [signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)]
        assert handlers[0] == signal.SIG_IGN and handlers[1] != signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    seen: list[Any] = []

    def beside() -> None:
        with stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=beside)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_reading_leaves_the_handlers_alone() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    during: list[Any] = []
    reader().read(
        text_of(20),
        checkpoint=lambda: during.append([signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]),
    )
    assert during and all(handlers == before for handlers in during)


# ---- additions


def stopped_addition(
    tiny_model: Path, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> list[object]:
    """A memory whose addition was stopped after so many chunks; the command that was."""
    more, out = folder / "more.txt", folder / "m.hmem"
    more.write_text(text, "utf-8")
    common = ["read", more, "--out", out, "--model", tiny_model, *SMALL, "--append"]
    real, left = Reader.read, chunks

    def failing(reader: Reader, *arguments: Any, **options: Any) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(reader, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read", failing)
        done = run(*common)
    assert done.returncode == 143 and b"the same command goes on" in done.stderr
    return common


def test_an_addition_goes_on_and_no_other_takes_its_place(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, added, out = text_of(60), " " + text_of(90, seed=2), tmp_path / "m.hmem"
    common = ["--out", out, "--model", tiny_model, *SMALL]
    first = result("read", "-", *common, stdin=base.encode())
    append = stopped_addition(tiny_model, tmp_path, added, monkeypatch, chunks=5)
    assert result("verify", out)["ok"] and result("verify", out / ADDITION)["ok"]
    other = run("read", "-", *common, "--append", stdin=b"Something else.")
    assert_refused(other, "holds another addition")
    done = result(*append)
    assert 0 < done["new_tokens"] < done["tokens"] - first["tokens"]
    assert sorted(file.suffix for file in out.iterdir() if file.is_dir()) == []
    whole = tmp_path / "whole.hmem"
    for text in (base, added):
        more = ["--append"] if whole.exists() else []
        result("read", "-", "--out", whole, *common[2:], *more, stdin=text.encode())
    model = command.opt.load_model(str(tiny_model), None, None, None)
    assert_same_memory(MemoryState.load(out, model), MemoryState.load(whole, model))


def test_an_addition_that_was_in_its_place_is_not_read_twice(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the memory was saved, before the folder of the addition was removed."""
    out, added = tmp_path / "m.hmem", " " + text_of(90, seed=2)
    common = ["--out", out, "--model", tiny_model, *SMALL]
    result("read", "-", *common, stdin=text_of(60).encode())
    append = stopped_addition(tiny_model, tmp_path, added, monkeypatch, chunks=5)
    with monkeypatch.context() as patch:
        patch.setattr(reading_task, "holds_memory", lambda _: False)
        whole = result(*append)
    assert (out / ADDITION).exists()
    again = result(*append)
    assert again["new_tokens"] == 0 and again["tokens"] == whole["tokens"]
    assert not (out / ADDITION).exists()


def test_an_addition_stays_in_the_memorys_folder(tiny_model: Path, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "m.hmem", tmp_path / "elsewhere"
    elsewhere.mkdir()
    common = ["--out", out, "--model", tiny_model, *SMALL]
    result("read", "-", *common, stdin=text_of(60).encode())
    (out / ADDITION).symlink_to(elsewhere)
    assert_refused(run("read", "-", *common, "--append", stdin=b"More of it."), "is a link")
    assert not [*elsewhere.iterdir()]


def test_what_stops_a_program_is_no_damage_to_a_model() -> None:
    with pytest.raises(Stopped), plainly("The model could not be loaded", "try again"):
        raise Stopped(signal.SIGINT)
    with pytest.raises(InputError, match="no key"), plainly("The model could not be loaded", "try again"):
        raise KeyError("no key")


# ---- disks


@pytest.mark.parametrize("number", ["EROFS", "ENOSPC"])
def test_a_disk_that_refuses_is_noticed_before_reading(
    number: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    if number == "ENOSPC":
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 16))
    else:

        def refuse(**_: object) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        monkeypatch.setattr(disk.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(command.opt, "load_model", lambda *_: pytest.fail("the model was loaded"))
    done = run("read", "-", "--out", tmp_path / "m", "--model", tiny_model, stdin=b"Some text.")
    assert_refused(done, os.strerror(getattr(errno, number)))
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("way", [[], ["--index"]], ids=["read", "indexed"])
def test_the_estimate_of_a_memory_is_near_its_size(way: list[str], tiny_model: Path, tmp_path: Path) -> None:
    out, text = tmp_path / "m", text_of(600)
    config = command.opt.configuration(str(tiny_model), None, None, 24, 32, 16)
    model = command.opt.load_model(str(tiny_model), config, None, None)
    task = command.Task(model.new_memory(), text, out, out, index=bool(way))
    estimate = command._final_size(model, task)
    result("read", "-", "--out", out, "--model", tiny_model, *SMALL, *way, stdin=text.encode())
    size = sum(file.stat().st_size for file in out.iterdir())
    assert size / 3 < estimate < size * 3


def test_reading_goes_on_where_saving_meanwhile_fails(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, saved = MemoryState.save, []

    def save(memory: MemoryState, path: Path) -> None:
        saved.append(memory.tokens)
        if len(saved) == 1:
            raise MemoryFileError("The disk is full.")
        real(memory, path)

    monkeypatch.setattr(MemoryState, "save", save)
    often = ["--save-every", "0.00001"]
    out = tmp_path / "m"
    done = run(
        *("read", "-", "--out", out, "--model", tiny_model, *SMALL, *often), stdin=text_of(60).encode()
    )
    message = done.stderr.decode()
    assert done.returncode == 0 and "The disk is full. Reading goes on." in message
    assert f"saved after {saved[1]} tokens" in message and len(saved) > 3
    assert result("verify", out)["ok"]


# ---- other commands


@pytest.mark.parametrize("many", [False, True], ids=["one process", "one of many"])
def test_commands_with_checkpoints_end_on_a_signal_as_on_ctrl_c(
    many: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hiermem.eval.tasks import passkey
    from hiermem.training import calibration

    seen: list[Any] = []

    def stopped(*_: object, **__: object) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM if seen[-1] != signal.SIG_DFL else signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr(passkey.PassKey, "rows", stopped)
    monkeypatch.setattr(calibration, "calibrate", stopped)
    if many:
        monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "book.txt").write_text(text_of(40), "utf-8")
    common = ["--model", tiny_model]
    for words in (
        ["calibrate", tmp_path / "book.txt", "--out", tmp_path / "evictor"],
        ["eval", "passkey", "--haystack", tmp_path / "book.txt", *SMALL],
    ):
        done = run(*words, *common)
        ours = seen[-1] != signal.SIG_DFL
        assert (done.returncode, done.stderr) == (143 if ours else 130, b"hiermem: stopped.\n")
    assert [handler == signal.SIG_DFL for handler in seen] == [many, False]
