"""The length benchmark: what failed is said, what was measured is kept, and ratios are to the bare limit."""

import json
import sys
from pathlib import Path

import pytest
import torch
from readers import ids_of, reader

from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.speed import SYSTEMS, Point, measure, sweep
from hiermem.resources import give_back_memory, used_bytes


def printing(speed: float) -> list[str]:
    row = {"tokens_per_second": speed, "peak_rss_bytes": 1}
    return [sys.executable, "-c", f"print('{json.dumps(row)}')"]


def giving_up(words: str) -> list[str]:
    return [sys.executable, "-c", f"print('{json.dumps({'failed': words})}')"]


def failing(words: str) -> list[str]:
    return [sys.executable, "-c", f"raise SystemExit({words!r})"]


def test_a_system_that_failed_is_not_tried_at_greater_lengths(tmp_path: Path) -> None:
    points = [
        Point("full", 300, failing("must not run")),
        Point("full", 200, giving_up("more than 1 s")),
        Point("full", 100, printing(50.0)),
        Point("bare limit", 100, printing(100.0)),
    ]
    result = sweep(points, 1, ResultLog(tmp_path / "out.json", {}))
    rows = {(row["system"], row["length"]): row for row in result["rows"]}
    assert rows["full", 200]["failed"] == "more than 1 s"
    assert ("full", 300) not in rows
    assert rows["full", 100]["ratio_to_bare"] == 0.5
    again = sweep(
        [Point(p.system, p.length, failing("ran again")) for p in points],
        1,
        ResultLog(tmp_path / "out.json", {}),
    )
    assert again == result


def test_every_turn_measures_the_lengths_before_the_one_that_failed(tmp_path: Path) -> None:
    count = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.open('a').write('x'); print(sys.argv[2])"
    row = json.dumps({"tokens_per_second": 50.0})
    short = [sys.executable, "-c", count, str(tmp_path / "short"), row]
    long = [sys.executable, "-c", count, str(tmp_path / "long"), json.dumps({"failed": "more than 1 s"})]
    sweep([Point("full", 100, short), Point("full", 900, long)], 3, ResultLog(None, {}))
    assert (tmp_path / "short").read_text() == "xxx"
    assert (tmp_path / "long").read_text() == "x"


def test_what_cannot_be_measured_at_all_is_no_result(tmp_path: Path) -> None:
    log = ResultLog(tmp_path / "out.json", {})
    with pytest.raises(InputError, match="no such device"):
        sweep([Point("full", 100, failing("hiermem: no such device"))], 1, log)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_ran_out_of_memory() -> None:
    killed = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
    (row,) = sweep([Point("full", 100, killed)], 1, ResultLog(None, {}))["rows"]
    assert row["failed"] == "more memory than the machine has"


@pytest.mark.parametrize("system", ["full", "bare limit"])
def test_a_point_over_its_limit_is_given_up(system: str) -> None:
    assert measure(reader(), ids_of(64)[0], system, limit=0.0) == {"failed": "more than 0 s"}


def test_systems_are_those_that_can_be_measured() -> None:
    assert SYSTEMS == ("hiermem", "full", "bare limit")
    row = measure(reader(), torch.arange(3, 60), "bare limit", limit=60)
    assert row["tokens_per_second"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_free_memory_between_lasting_records_is_given_back() -> None:
    def scattered() -> list[bytearray]:
        return [bytearray(4096) for _ in range(30_000)][::64]

    kept = scattered()  # each keeps the pages around it with the process
    before = used_bytes(torch.device("cpu"))
    give_back_memory()
    assert before - used_bytes(torch.device("cpu")) > 60 << 20
    assert len(kept) == 469
