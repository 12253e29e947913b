"""A run that is stopped goes on from its finished parts, and never mixes two runs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog, data_hash

SETTINGS = {"task": "t", "budget": 512, "lengths": (1, 2)}
OTHER = {**SETTINGS, "budget": 256}


def finished_part(value: int) -> dict[str, Any]:
    return {"value": value}


def two_parts(log: ResultLog) -> dict[str, Any]:
    return {"n": log.row("a", finished_part, 1)["value"] + log.row("b", finished_part, 2)["value"]}


def forbidden(*_: Any) -> dict[str, Any]:
    raise AssertionError("computed again")


def test_finished_parts_are_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    log = ResultLog(path, SETTINGS)
    log.row("a", finished_part, 1)
    again = ResultLog(path, SETTINGS)
    assert again.row("a", forbidden) == {"value": 1}
    report = again.report(two_parts, "hiermem t")
    assert (report["task"], report["n"], report["command"]) == ("t", 3, "hiermem t")
    assert report["config"] == {"task": "t", "budget": 512, "lengths": [1, 2]}
    assert not path.with_name("result.json.part").exists()
    assert ResultLog(path, SETTINGS).report(forbidden, "") == report


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_by_a_kill_is_computed_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "result.json"
    log, part = ResultLog(path, SETTINGS), tmp_path / "result.json.part"
    log.row("a", finished_part, 1)
    log.row("b", finished_part, 2)
    part.write_bytes(part.read_bytes()[:-cut])
    again = ResultLog(path, SETTINGS)
    assert [again.row(key, finished_part, value) for key, value in (("a", 1), ("b", 2))] == [
        {"value": 1},
        {"value": 2},
    ]
    for line in part.read_text().splitlines():
        json.loads(line)


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    ResultLog(path, SETTINGS).row("a", finished_part, 1)
    with pytest.raises(InputError, match="other settings"):
        ResultLog(path, OTHER)
    ResultLog(path, SETTINGS).report(two_parts, "")
    with pytest.raises(InputError, match="other settings"):
        ResultLog(path, OTHER).report(two_parts, "")


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("not JSON")
    with pytest.raises(InputError, match="no result"):
        ResultLog(path, SETTINGS).report(two_parts, "")
    path.with_name("result.json.part").write_text("neither\n")
    with pytest.raises(InputError, match="no log of a run"):
        ResultLog(path, SETTINGS)


@pytest.mark.parametrize("content", [b"one line of notes", b"first\nsecond", b"\xff\n", b'{"key": 1}\n{"'])
def test_what_is_not_its_own_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    part = tmp_path / "result.json.part"
    part.write_bytes(content)
    with pytest.raises(InputError, match="no log of a run"):
        ResultLog(tmp_path / "result.json", SETTINGS)
    assert part.read_bytes() == content


def test_a_cut_log_of_other_settings_is_left_as_it_is(tmp_path: Path) -> None:
    path, part = tmp_path / "result.json", tmp_path / "result.json.part"
    ResultLog(path, OTHER).row("a", finished_part, 1)
    part.write_bytes(part.read_bytes()[:-3])
    before = part.read_bytes()
    with pytest.raises(InputError, match="other settings"):
        ResultLog(path, SETTINGS)
    assert part.read_bytes() == before


def test_a_folder_is_no_file_to_write(tmp_path: Path) -> None:
    for path in (tmp_path, Path("."), tmp_path / "result.json" / "deeper"):
        (tmp_path / "result.json").touch()
        with pytest.raises(InputError, match="--out"):
            ResultLog(path, SETTINGS)


def test_other_texts_have_other_fingerprints() -> None:
    assert data_hash("a", "b") == data_hash("a", "b")
    assert len({data_hash(*texts) for texts in (("a", "b"), ("ab",), ("b", "a"), ("a", "b", ""), ())}) == 5


def test_without_a_path_nothing_is_written() -> None:
    log = ResultLog(None, SETTINGS)
    assert log.row("a", finished_part, 1) == log.row("a", forbidden)
    assert log.report(two_parts, "")["n"] == 3


def test_seconds_of_finished_parts_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    ResultLog(path, SETTINGS).row("a", lambda: time.sleep(0.05) or {"value": 1})
    assert ResultLog(path, SETTINGS).report(two_parts, "")["seconds"] >= 0.05
