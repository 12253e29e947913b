"""The page of results: every number in it is one of a result file."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hiermem.errors import InputError
from hiermem.eval.report import build
from hiermem.eval.tables import table

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
    assert "| attention | 512 |  | 29.50 | 0.250 | 29.50 |" in page  # a quarter of the gap from 30 to 28
    assert "| hiermem (attention) | 0.610 |" in page
    assert "| kvpress snapkv | 0.250 | 3.21 |" in page
    assert "more than 600 s" in page
    assert "0.95, n 20" in page
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


@pytest.mark.parametrize("content", ['{"task": "needles"}', "[]", "3", "no JSON"])
def test_half_a_result_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "half.json").write_text(content)
    with pytest.raises(InputError, match=r"half\.json is no result of hiermem"):
        build(tmp_path, tmp_path / "page.md")


ODD = "<script>alert(1)</script> | **bold** `code` [a](b)\n\n# Title \\ $\\frac{ &amp;"


def test_whatever_results_hold_is_shown_as_it_is(tmp_path: Path) -> None:
    """Read back by a parser of Markdown: tables of as many cells, no HTML, no links, no other headings."""
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    results.mkdir()
    config = {"system": ODD, "together": 10, "working": {"policy": ODD, "budget": 5}}
    write(
        results, "qa", "pubmedqa", {"accuracy": 0.5, "macro_f1": 0.4}, config, command=f"hiermem ```\n{ODD}"
    )
    write(results, "other", ODD, {ODD: 0.5}, {})
    rows = [{"system": f"_{ODD}", "length": 9, "tokens_per_second": 2.0, "peak_rss_bytes": 1}]
    rows.append({"system": ODD, "length": 9, "failed": ODD})
    write(results, "speed", "length", {}, {}, rows=rows)
    row = {"book": ODD, "perplexity": 9.0, "curve": [3.0], "n": 5}
    read = {"policy": ODD, "window": None, "working": {"policy": ODD, "budget": 512}}
    write(results, "books", "pg19", {"perplexity": 9.0}, read, rows=[row])
    page = build(results, tmp_path / "page.md")[0].read_text("utf-8")
    outside = re.sub(r"(?ms)^(`{3,})sh$.*?^\1$", "", page)
    assert "```" not in outside and "hiermem ```" in page
    for wrong in ("<script", "**bold**", "`code`", "[a](b)", "\n# Title", "\n\n#  Title"):
        assert wrong not in outside, wrong
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \| \*\*bold\*\* \`code\` \[a\](b)" in outside
    assert [line for line in outside.splitlines() if line.startswith("# ")] == ["# Results"]
    for block in outside.split("\n\n"):
        cells = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines() if line.startswith("|")}
        assert len(cells) <= 1, block


@pytest.mark.parametrize(
    "change",
    [
        {"task": ["length"]},
        {"task": None},
        {"config": []},
        {"metrics": "many"},
        {"task": "pg19", "rows": [{"book": "7"}]},
        {"task": "needles", "n": "seven"},
        {"task": "passkey", "rows": "none"},
        {"task": "passkey", "rows": [{"length": 9, "accuracy": "high", "n": 1}]},
        {"command": ["rm", "-rf"]},
    ],
)
def test_odd_results_are_refused_in_a_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {"keep": 0.5, "working": WORKING}
    write(tmp_path, "odd", "needles", {"nll": 1.0, "exact": 1.0}, config)
    known = json.loads((tmp_path / "odd.json").read_text())
    build(tmp_path, tmp_path / "page.md")
    (tmp_path / "odd.json").write_text(json.dumps({**known, "examples": [{"nll": 1.0}], **change}))
    with pytest.raises(InputError, match=r"odd\.json is no result of hiermem"):
        build(tmp_path, tmp_path / "page.md")


def test_what_is_no_file_and_what_does_not_go_together(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InputError, match=r"pipe\.json is no result"):
        build(tmp_path, tmp_path / "page.md")
    (tmp_path / "pipe.json").unlink()
    for name, together in (("one", 10), ("other", "ten")):
        config = {"together": together, "working": WORKING}
        write(tmp_path, name, "pubmedqa", {"accuracy": 0.5}, config)
    with pytest.raises(InputError, match="do not go together"):
        build(tmp_path, tmp_path / "page.md")
    deep = "[" * 100_000
    (tmp_path / "other.json").write_text(deep)
    with pytest.raises(InputError, match=r"other\.json is no result"):
        build(tmp_path, tmp_path / "page.md")


def test_results_that_differ_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    for seed, value in ((1, 0.25), (2, 0.75)):
        rows = [{"length": 1024, "accuracy": value, "n": 4}]
        write(
            tmp_path,
            f"k{seed}",
            "passkey",
            {"accuracy": value},
            {"working": WORKING, "seed": seed},
            rows=rows,
        )
        config = {"system": "pruned", "keep": 0.25, "working": {**WORKING, "chunk": seed}}
        write(tmp_path, f"n{seed}", "needles", {"nll": value, "exact": 0.1, "kept": 0.2}, config)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| hiermem (attention), seed 1 | 0.25, n 4 |" in page
    assert "| hiermem (attention), seed 2 | 0.75, n 4 |" in page
    assert "| attention, chunk 1 | 0.250 | 0.250 |" in page


def test_a_setting_that_only_some_have_tells_them_apart(tmp_path: Path) -> None:
    """By the first one that does: what follows from it is left out."""
    for name, value, more in (("a", 0.25, {}), ("b", 0.75, {"adapter": "new", "rank": 8})):
        rows = [{"length": 1024, "accuracy": value, "n": 4}]
        config = {"working": WORKING, **more}
        write(tmp_path, name, "passkey", {"accuracy": value}, config, rows=rows)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| hiermem (attention), adapter None | 0.25, n 4 |" in page
    assert "| hiermem (attention), adapter new | 0.75, n 4 |" in page


def test_shares_of_the_gap_are_of_the_same_text(tmp_path: Path) -> None:
    for tokens, worst in ((100, 30.0), (200, 40.0)):
        for name, given in {
            "window": pg19("window", 512, worst),
            "attention": pg19("attention", 512, 29.0),
            "full": pg19("full", 512, 28.0, window=8192),
        }.items():
            config = {**given["config"], "tokens": tokens}
            write(tmp_path, f"{name}{tokens}", "pg19", given["metrics"], config, rows=given["rows"])
    pytest.importorskip("matplotlib")
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| attention | 512 | 100 | 29.00 | 0.500 | 29.00 |" in page
    assert "| attention | 512 | 200 | 29.00 | 0.917 | 29.00 |" in page


def test_other_prompts_are_compared_on_those_that_all_have(tmp_path: Path) -> None:
    examples = [{"nll": 1.0}, {"nll": 2.0}, {"nll": 9.0}]
    mine = {"system": "full", "keep": 1.0}
    write(tmp_path, "full", "needles", {"nll": 4.0, "exact": 0.5}, mine, examples=examples)
    report = json.loads((tmp_path / "full.json").read_text())
    (tmp_path / "full.json").write_text(json.dumps({**report, "n": 3}))
    theirs = {"system": "kvpress snapkv", "keep": 1.0}
    write(tmp_path, "peer", "needles", {"nll": 3.0, "exact": 0.5, "kept": 1.0}, theirs)
    report = json.loads((tmp_path / "peer.json").read_text())
    (tmp_path / "peer.json").write_text(json.dumps({**report, "n": 2}))
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| full | 1.00 | 4.00 | 0.500 | 1.50 |  | 3 |" in page
    assert "| kvpress snapkv | 1.00 | 3.00 | 0.500 | 3.00 | 1.00 | 2 |" in page


@pytest.mark.parametrize("name", ["page.md", "pg19.png", "full.json"])
def test_files_of_ones_own_are_not_written_over(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    given = pg19("full", 512, 28.0)
    write(tmp_path, "full", "pg19", given["metrics"], given["config"], rows=given["rows"])
    if name != "full.json":
        (tmp_path / name).write_text("mine")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(InputError, match=f"{name} is no earlier result and would be lost"):
        build(tmp_path, tmp_path / (name if name != "pg19.png" else "page.md"))
    assert (tmp_path / name).read_bytes() == before


def test_tables_line_up() -> None:
    assert table(["a", "b"], [[1, None], [0.12345, "x"]]) == [
        "| a | b |",
        "| --- | --- |",
        "| 1 |  |",
        "| 0.123 | x |",
    ]
