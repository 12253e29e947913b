"""Standard streams of any kind, documents by their path, and bars that leave other processes alone."""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
from commands import assert_refused, result, run
from readers import reader, text_of

import hiermem
from hiermem.cli import terminal
from hiermem.documents import file_text
from hiermem.errors import InputError
from hiermem.progress import progress_bar, say

SMALL = ["--budget", "24", "--segment", "32", "--chunk", "16"]


@pytest.fixture(scope="module")
def memory(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small memory whose passages are not all ASCII."""
    out = tmp_path_factory.mktemp("memories") / "m.hmem"
    result("read", "-", "--out", out, "--model", tiny_model, *SMALL, stdin=text_of(60).encode())
    return out


def shell(line: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's line in which `$H` is the command."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *map(str, arguments)],
        env={
            **os.environ,
            "H": f"{sys.executable} -m hiermem.cli.main",
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "status", "expected"),
    [
        ('$H verify "$1" 2>&-', 0, b"is sound"),
        ('$H verify "$1" <&- >&- 2>&-', 0, b""),
        ('$H read - --out "$1.x" <&-', 2, b"Standard input is closed"),
        ('$H verify "$1" >/dev/full', 2, b"No space left"),
        ('(sleep 1; $H verify "$1"; echo $? >&2) | true', 0, b"141"),
    ],
)
def test_closed_and_ended_streams(line: str, status: int, expected: bytes, memory: Path) -> None:
    done = shell(line, memory)
    shown = done.stdout + done.stderr
    assert done.returncode == status, shown
    assert expected in shown and b"Traceback" not in shown and b"Exception" not in shown


def test_what_an_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.prepare()
    terminal.emit({}, False, "→ naïve")
    assert stream.buffer.getvalue() == b"? na?ve\n"  # type: ignore[attr-defined]


def test_json_on_a_narrow_terminal_says_the_same(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.emit({"answer": "東京 🚢 naïve"}, True, "")
        assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"answer": "東京 🚢 naïve"}  # type: ignore[attr-defined]


def test_closed_descriptors_are_not_given_to_files() -> None:
    code = "from hiermem.cli import terminal; terminal.prepare(); print(open('/dev/null').fileno() > 2)"
    for closed in ("<&-", "2>&-", "<&- 2>&-"):
        done = shell(f'{sys.executable} -c "$1" {closed}', code)
        assert done.stdout.strip() == b"True"


def test_shell_completion_knows_the_commands() -> None:
    done = shell("$H", _MAIN_PY_COMPLETE="x")  # another program's variable changes nothing
    assert done.returncode == 2
    from typer.testing import CliRunner

    from hiermem.cli.main import app

    shown = CliRunner().invoke(
        app,
        [],
        prog_name="hiermem",
        env={"_HIERMEM_COMPLETE": "complete_bash", "COMP_WORDS": "hiermem ver", "COMP_CWORD": "1"},
    )
    assert shown.stdout.split() == ["verify"]


def test_the_version_is_the_installed_one() -> None:
    assert hiermem.__version__ == version("hiermem-torch")


# ---- documents


def test_a_path_is_read_as_the_file_and_its_name_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = reader(), text_of(30)
    (tmp_path / "book.txt").write_text("\ufeff" + text, "utf-8")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.read(Path("book.txt")).text == text
        assert model.read("other.txt").text == "other.txt"
    with pytest.warns(UserWarning, match=r"give pathlib.Path\('book.txt'\)") as warned:
        assert model.read("book.txt").text == "book.txt"
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (None, "cannot be read"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0b", "binary data"),
    ],
)
def test_files_that_are_no_text_are_refused(data: bytes | None, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    if data is not None:
        file.write_bytes(data)
    for read in (file_text, reader().read):
        with pytest.raises(InputError, match=sentence):
            read(file)
    with pytest.raises(InputError, match="cannot be read"):
        file_text(tmp_path)


# ---- bars


class Terminal:
    """An error stream that says it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass


def test_without_a_bar_tqdm_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    model = reader()
    assert model.read(text_of(20), progress=False).tokens
    assert model.read(text_of(20), progress=True).tokens  # no terminal
    monkeypatch.setattr(sys, "stderr", None)
    assert model.read(text_of(20), progress=True).tokens
    say("nobody listens")


def test_a_bar_shows_progress_and_sentences_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with progress_bar("reading", 100, "char", True) as bar:
        bar.delay = 0  # type: ignore[attr-defined]
        bar.update(50)
        bar.set_postfix(tokens=7)
        say("saved")
    assert "50.0/100" in stream.written and "tokens=7" in stream.written and "saved\n" in stream.written


def killed_with_the_lock() -> None:
    """Ends while it holds the lock of bars."""
    from hiermem.progress import _bar_class

    _bar_class().get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_with_a_bar_does_not_stop_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar("reading", 1, "char", True):
        worker = multiprocessing.get_context("fork").Process(target=killed_with_the_lock)
        worker.start()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL
    done = threading.Event()

    def draw() -> None:
        with progress_bar("reading", 1, "char", True):
            done.set()

    threading.Thread(target=draw, daemon=True).start()
    assert done.wait(20)


# ---- settings


@pytest.mark.parametrize(
    ("segment", "chunk"),
    [(500, 500), (768, 384), (1024, 512), (521, None), (1000, 500), (96, 96), (509, 509)],
)
def test_a_segment_has_chunks_of_a_reasonable_size(segment: int, chunk: int | None) -> None:
    from hiermem.cli.options import configuration

    if chunk is None:
        with pytest.raises(InputError, match="give --segment 1024, or a --chunk"):
            configuration("smollm2", "full", segment=segment)
    else:
        assert configuration("smollm2", "full", segment=segment).chunk == chunk


def test_a_wrong_dtype_or_device_names_itself(memory: Path) -> None:
    assert_refused(run("ask", memory, "Who?", "--dtype", "int8"), "no dtype 'int8'")
    assert_refused(run("ask", memory, "Who?", "--device", "warp"), "'warp' cannot be used")
