"""A run that is stopped goes on from its finished parts, and never mixes two runs."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hiermem.errors import InputError
from hiermem.eval.journal import Journal

SETTINGS = {"budget": 512, "lengths": (1, 2)}


def finished_part(value: int) -> dict[str, Any]:
    return {"value": value}


def forbidden() -> dict[str, Any]:
    raise AssertionError("computed again")


def test_finished_parts_are_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    journal = Journal(path, SETTINGS)
    assert journal.finished() is None
    journal.row("a", finished_part, 1)
    again = Journal(path, SETTINGS)
    assert again.row("a", forbidden) == {"value": 1}
    again.row("b", finished_part, 2)
    again.finish({"config": again.settings, "n": 2})
    assert not path.with_name("result.json.part").exists()
    done = Journal(path, SETTINGS)
    assert done.finished() == {"config": {"budget": 512, "lengths": [1, 2]}, "n": 2}


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_short_by_a_kill_is_computed_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "result.json"
    journal, part = Journal(path, SETTINGS), tmp_path / "result.json.part"
    journal.row("a", finished_part, 1)
    journal.row("b", finished_part, 2)
    part.write_bytes(part.read_bytes()[:-cut])
    again = Journal(path, SETTINGS)
    assert [again.row(key, finished_part, value) for key, value in (("a", 1), ("b", 2))] == [
        {"value": 1},
        {"value": 2},
    ]
    for line in part.read_text().splitlines():
        json.loads(line)


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    Journal(path, SETTINGS).row("a", finished_part, 1)
    with pytest.raises(InputError, match="other settings"):
        Journal(path, {"budget": 256})
    journal = Journal(path, SETTINGS)
    journal.finish({"config": journal.settings})
    with pytest.raises(InputError, match="other settings"):
        Journal(path, {"budget": 256}).finished()


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("not JSON")
    with pytest.raises(InputError, match="no result"):
        Journal(path, SETTINGS).finished()
    path.with_name("result.json.part").write_text("neither\n")
    with pytest.raises(InputError, match="no journal"):
        Journal(path, SETTINGS)


def test_without_a_path_nothing_is_written() -> None:
    journal = Journal(None, SETTINGS)
    assert journal.row("a", finished_part, 1) == journal.row("a", forbidden)
    journal.finish({})


def test_seconds_of_finished_parts_are_counted(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out.json", {})
    first.row("slow", lambda: time.sleep(0.05) or {})
    assert first.seconds == 0
    assert Journal(tmp_path / "out.json", {}).seconds >= 0.05
