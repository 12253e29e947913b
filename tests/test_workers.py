"""Documents read by Ray's workers: the same library as by one process, also where a worker is killed."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from readers import reader, text_of

from hiermem import Library
from hiermem.errors import InputError
from hiermem.library import Workers
from hiermem.library.files import found_files

ray = pytest.importorskip("ray")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with documents of different lengths."""
    folder = tmp_path / "files"
    folder.mkdir()
    for number, words in enumerate((3000, 40, 500, 60, 300)):
        (folder / f"{number}.txt").write_text(text_of(words, seed=number), encoding="utf-8")
    return folder


def kill_one_worker(killed: list[int]) -> None:
    """Kill the first worker that shows itself among this process's descendants, once it is reading."""
    end = time.monotonic() + 400
    while not killed and time.monotonic() < end:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if line.startswith(b"ray::_Worker.read"):
                killed.append(int(process.name))
                os.kill(killed[0], signal.SIGKILL)
                return
        time.sleep(0.005)


@pytest.mark.timeout(600)  # Ray and two models begin, on cores that others use
def test_two_workers_read_as_one_process_does_and_one_may_die(tmp_path: Path, files: Path) -> None:
    one = Library.open(tmp_path / "one", reader(), index=False)
    one.add(files)
    two, killed = Library.open(tmp_path / "two", reader(), index=False), list[int]()
    killer = threading.Thread(target=kill_one_worker, args=(killed,))
    killer.start()
    added = two.add(files, workers=Workers(2, reader))
    killer.join()
    assert killed and not ray.is_initialized()
    assert [each.outcome for each in added] == ["added"] * 5
    assert {each.outcome for each in two.add(files)} == {"unchanged"}
    assert two.verify() == [] and two.unfinished() == []
    facts = ("id", "name", "sha256", "tokens", "segments", "characters")
    for single, pair in zip(one.documents(), two.documents(), strict=True):
        assert [getattr(single, name) for name in facts] == [getattr(pair, name) for name in facts]
        parts = [library.path / "documents" / entry.folder for library, entry in ((one, single), (two, pair))]
        own, other = ((part / "index.safetensors").read_bytes() for part in parts)
        assert own == other
    question = "Who sailed home at dawn?"
    assert one.ask(question).sources == two.ask(question).sources


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, files: Path) -> None:
    (files / "bad.txt").write_bytes(b"\0\1")
    library = Library.open(tmp_path / "library", reader(), index=True)
    with pytest.raises(InputError, match=r"bad\.txt' holds binary data"):
        library.add([files / "1.txt", files / "bad.txt"], workers=Workers(1, reader))
    assert [entry.name for entry in library.documents()] in ([], ["1.txt"])
    assert library.add([files / "1.txt"], progress=False)[0].name == "1.txt"


def test_there_is_at_least_one_worker() -> None:
    with pytest.raises(InputError, match="at least one worker"):
        Workers(0, reader)


def test_files_are_found_before_workers_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        found_files([tmp_path / "none"])
    assert not ray.is_initialized()
