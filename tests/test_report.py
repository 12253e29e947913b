"""The page of results: every number in it is one of a result file."""

import json
from pathlib import Path
from typing import Any

import pytest

from hiermem.errors import InputError
from hiermem.eval.report import build, table

WORKING = {"policy": "attention", "budget": 512}


def write(
    folder: Path, name: str, task: str, metrics: dict[str, float], config: dict[str, Any], **more: Any
) -> None:
    report = {
        "task": task,
        "metrics": metrics,
        "n": 7,
        "config": config,
        "command": f"hiermem eval {name}",
        **more,
    }
    (folder / f"{name}.json").write_text(json.dumps(report))


def pg19(policy: str, budget: int, perplexity: float, window: int | None = None) -> dict[str, Any]:
    row = {"book": "7", "perplexity": perplexity, "curve": [3.0, 2.9], "n": 5}
    config = {"policy": policy, "window": window, "working": {"policy": policy, "budget": budget}}
    return {"metrics": {"perplexity": perplexity}, "config": config, "rows": [row]}


def test_every_section_shows_its_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    results.mkdir()
    for name, given in {
        "window": pg19("window", 512, 30.0),
        "attention": pg19("attention", 512, 29.5),
        "full": pg19("full", 512, 28.0, window=8192),
    }.items():
        write(results, name, "pg19", given["metrics"], given["config"], rows=given["rows"])
    for system, value in (("hiermem", 0.61), ("bm25", 0.58)):
        config = {"system": system, "together": 50, "working": WORKING}
        write(results, f"qa-{system}", "pubmedqa", {"accuracy": value, "macro_f1": 0.4}, config)
    write(
        results,
        "snapkv",
        "needles",
        {"nll": 3.21, "exact": 0.1, "kept": 0.25},
        {"system": "kvpress snapkv", "keep": 0.25},
    )
    rows = [
        {"system": "hiermem", "length": 2048, "tokens_per_second": 1234.0, "peak_rss_bytes": 2**30},
        {"system": "full", "length": 131072, "failed": "more than 600 s"},
    ]
    write(results, "speed", "length", {}, {}, rows=rows)
    keyed = [{"length": 1024, "accuracy": 0.95, "n": 20}]
    write(results, "key", "passkey", {"accuracy": 0.95}, {"working": WORKING}, rows=keyed)
    written = build(results, tmp_path / "docs" / "page.md")
    page = written[0].read_text("utf-8")
    assert "| attention | 512 | 29.50 | 0.250 | 29.50 |" in page  # a quarter of the gap from 30 to 28
    assert "| hiermem (attention) | 0.610 |" in page
    assert "| kvpress snapkv | 0.250 | 3.21 |" in page
    assert "more than 600 s" in page
    assert "0.95 (20)" in page
    assert "hiermem eval qa-bm25" in page
    assert all(path.stat().st_size > 1000 for path in written[1:])
    for path in written[1:]:
        assert f"({path.name})" in page


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no results"):
        build(tmp_path, tmp_path / "page.md")
    (tmp_path / "stranger.json").write_text('["list"]')
    with pytest.raises(InputError, match=r"stranger\.json is no result"):
        build(tmp_path, tmp_path / "page.md")


def test_tables_line_up() -> None:
    assert table(["a", "b"], [[1, None], [0.12345, "x"]]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 |  |",
        "| 0.123 | x |",
    ]
