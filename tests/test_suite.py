"""The program that measures what the page shows: it skips, goes on, sets aside, and stops in order."""

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from typer.main import get_command

from hiermem.cli.main import app

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
COUNTS = "import sys; open(sys.argv[1], 'a').write('x')"
FAILS = "import sys; sys.exit('no such data')"
REFUSES = """
import pathlib, sys
f = pathlib.Path(sys.argv[1])
if f.exists() and f.read_text() != sys.argv[2]:
    sys.exit(f"{f} is of a run with other settings: give another file to --out.")
f.write_text(sys.argv[2])
"""
GOES_ON = """
import pathlib, signal, sys, time
f = pathlib.Path(sys.argv[1])
part = f.with_name(f.name + ".part")
if part.exists():
    f.write_text("whole")
    part.unlink()
    sys.exit()
part.write_text("begun")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(60)
"""


@pytest.fixture(scope="module")
def suite() -> ModuleType:
    return loaded("suite")


def loaded(name: str) -> ModuleType:
    """A program of benchmarks/ as a module; what it imports from there is found."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(BENCHMARKS))


def fake(suite: ModuleType, name: str, program: str, *words: str) -> "suite.Measurement":  # type: ignore[name-defined]
    return suite.Measurement(name, (sys.executable, "-c", program, "{out}", *words), 1.0)


def test_what_has_finished_is_not_run_again_and_another_command_is(suite: ModuleType, tmp_path: Path) -> None:
    both = [fake(suite, name, COUNTS) for name in ("one", "two")]
    assert suite.Suite(tmp_path).run(both) == 0
    assert suite.Suite(tmp_path).run(both) == 0
    assert [(tmp_path / f"{name}.json").read_text() for name in ("one", "two")] == ["x", "x"]
    assert suite.Suite(tmp_path, check=True).run(both[:1]) == 0
    assert suite.Suite(tmp_path).run([fake(suite, "two", COUNTS, "--limit")]) == 0
    assert [(tmp_path / f"{name}.json").read_text() for name in ("one", "two")] == ["xx", "xx"]
    (tmp_path / "one.json").unlink()
    assert suite.Suite(tmp_path).run(both[:1]) == 0
    assert (tmp_path / "one.json").exists()


def test_a_failure_is_told_at_the_end_and_stops_no_other(
    suite: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = suite.Measurement("missing", ("no-such-program", "{out}"), 1.0)
    assert suite.Suite(tmp_path).run([missing, fake(suite, "bad", FAILS), fake(suite, "good", COUNTS)]) == 1
    assert (tmp_path / "good.json").exists()
    told = capfd.readouterr().err
    assert "bad failed: no such data" in told
    assert "missing failed: no-such-program cannot be run" in told
    assert suite.Suite(tmp_path).run([fake(suite, "bad", FAILS)]) == 1  # it is tried again


def test_a_result_of_other_settings_is_kept_and_measured_again(suite: ModuleType, tmp_path: Path) -> None:
    for settings in ("first", "second", "third"):
        assert suite.Suite(tmp_path).run([fake(suite, "one", REFUSES, settings)]) == 0
    assert (tmp_path / "one.json").read_text() == "third"
    earlier = sorted((tmp_path / "earlier").iterdir())
    assert [file.read_text() for file in earlier] == ["first", "second"]


def test_of_two_suites_one_measures(
    suite: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = suite.Suite(tmp_path)
    first.run([])
    with open(tmp_path / suite.RECORDS / "one.done", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert suite.Suite(tmp_path).run([fake(suite, "one", COUNTS), fake(suite, "two", COUNTS)]) == 0
    assert not (tmp_path / "one.json").exists()
    assert (tmp_path / "two.json").exists()
    assert "Another suite is at one." in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_reaches_what_runs_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    program = f"""
import signal, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
import suite
from pathlib import Path
them = [suite.Measurement(n, (sys.executable, "-c", {GOES_ON!r}, "{{out}}"), 1.0) for n in ("a", "b", "c")]
run = suite.Suite(Path(sys.argv[1]))
for each in (signal.SIGINT, signal.SIGTERM):
    signal.signal(each, run.stop)
sys.exit(run.run(them))
"""
    words = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as child:
        while not all((tmp_path / f"{name}.json.part").exists() for name in ("a", "b")):
            assert child.poll() is None
            time.sleep(0.02)
        child.send_signal(number)
        told = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + number
    assert "Stopped: the same command goes on." in told
    assert "failed" not in told
    assert not (tmp_path / "c.json.part").exists()  # nothing is begun after it
    (tmp_path / "c.json.part").write_text("begun")
    again = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert again.returncode == 0, again.stderr
    assert [(tmp_path / f"{name}.json").read_text() for name in "abc"] == ["whole"] * 3


def test_the_list_names_files_once_and_commands_that_are_there(suite: ModuleType, tmp_path: Path) -> None:
    other = suite.Backbone("other", str(tmp_path), 2.0)
    found = suite.all_measurements(Path("data"), [other])
    names = [each.name for each in found]
    assert len({each.file for each in found}) == len(found)
    assert {each.needs for each in found} - {""} <= set(names)
    assert all(each.minutes > 0 for each in found)
    assert any(name.startswith("other-") for name in names)
    for each in found:
        if each.words[0] != "hiermem":
            assert (BENCHMARKS.parent / each.words[1]).exists(), each.words
            continue
        command = get_command(app)
        words = list(each.words[1:])
        while hasattr(command, "commands"):
            assert words[0] in command.commands, each.words
            command = command.commands[words.pop(0)]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, each.words


def test_backbones_of_ones_own_are_called_by_name(suite: ModuleType, tmp_path: Path) -> None:
    folder, out = tmp_path / "secret place", tmp_path / "out"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    os.truncate(folder / "model.safetensors", 540_000_000)
    backbone = suite.backbone_of(f"mine={folder}", out)
    assert backbone == suite.Backbone("mine", str(out / "models" / "mine"), 2.0)
    assert Path(backbone.option).resolve() == folder.resolve()
    assert suite.backbone_of(f"mine={folder}", out) == backbone
    every = suite.all_measurements(Path("data"), [backbone])
    assert not [each for each in every if "secret" in " ".join(each.words)]
    for wrong in ("mine", f"smollm2={folder}", f"a/b={folder}", "mine=nowhere"):
        with pytest.raises(ValueError, match=r"--model takes NAME=FOLDER|there is no folder"):
            suite.backbone_of(wrong, out)
    with pytest.raises(ValueError, match="give another name"):
        suite.backbone_of(f"mine={tmp_path}", out)


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--jobs", "0"], ["--model", "x"]])
def test_wrong_options_are_refused(suite: ModuleType, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        suite.main(["data", str(tmp_path / "out"), *words])
    assert stopped.value.code == 2


def test_the_list_says_what_is_left(
    suite: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert suite.main(["data", str(tmp_path), "--list", "--only", "pg19-f"]) == 0
    told = capsys.readouterr().out
    assert "pg19-full\n" in told and "hours are left, 2 at a time." in told
    assert "needles" not in told
    assert not any(tmp_path.iterdir())
