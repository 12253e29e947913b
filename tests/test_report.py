"""The page of results: every number in it is one of a result file."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from hiermem.errors import InputError
from hiermem.eval.figures import conditions
from hiermem.eval.plots import MOST_COLOURS, Line, Panel, chart
from hiermem.eval.prompt_grounds import ground_file, read_ground, write_ground
from hiermem.eval.report import build
from hiermem.eval.section import Section
from hiermem.eval.tables import Report, table
from hiermem.eval.tasks import TASKS

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


def test_settings_beside_prompts_are_no_result(tmp_path: Path) -> None:
    """Where `make results` dumps prompts into the folder of the results."""
    write(tmp_path, "needles", "strange", {"accuracy": 0.5}, {})
    (tmp_path / "needles.jsonl").write_text("{}\n")
    write_ground(tmp_path / "needles.jsonl", "needles", {"task": "needles", "model": "smollm2"})
    assert [path.name for path in build(tmp_path, tmp_path / "page.md")] == ["page.md"]
    (tmp_path / "needles.jsonl").unlink()
    with pytest.raises(InputError, match=r"settings\.json is no result"):
        build(tmp_path, tmp_path / "page.md")


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
    assert "| hiermem (attention), budget 512 | 0.610 |" in page
    assert "| kvpress snapkv | 0.250 | 3.21 |" in page
    assert "more than 600 s" in page
    assert "| hiermem (attention), budget 512 | 0.950, n 20 |" in page
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
    for name, length in (("one", 10), ("other", "ten")):
        rows = [{"length": length, "accuracy": 0.5, "n": 1}]
        write(tmp_path, name, "passkey", {"accuracy": 0.5}, {"working": WORKING}, rows=rows)
    with pytest.raises(InputError, match="do not go together"):
        build(tmp_path, tmp_path / "page.md")
    deep = "[" * 100_000
    (tmp_path / "other.json").write_text(deep)
    with pytest.raises(InputError, match=r"other\.json is no result"):
        build(tmp_path, tmp_path / "page.md")


@pytest.mark.parametrize(
    "key", ["model", "dtype", "device", "data", "seed", "split", "limit", "language", "one of another task"]
)
def test_results_of_other_settings_stand_in_tables_of_their_own(tmp_path: Path, key: str) -> None:
    for name, value in (("first", 0.25), ("other", 0.75)):
        rows = [{"length": 1024, "accuracy": value, "n": 4}]
        config = {"model": "m", "dtype": "float32", "device": "cpu", "working": WORKING, key: name}
        write(tmp_path, name, "passkey", {"accuracy": value}, config, rows=rows)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert page.count("| hiermem (attention), budget 512 | 0.250, n 4 |") == 1
    assert page.count("| hiermem (attention), budget 512 | 0.750, n 4 |") == 1
    assert "0.500" not in page and "0.250 to 0.750" not in page
    section = page.partition("## Pass key")[2]
    tables = [line for line in section.splitlines() if line.startswith("| method")]
    headings = [line for line in section.splitlines() if line.startswith("### ")]
    assert len(tables) == len(headings) == 2
    assert headings[0] != headings[1] and all(name in section for name in ("first", "other"))


def test_methods_of_other_settings_stand_in_rows_of_their_own(tmp_path: Path) -> None:
    """Also where one has lengths that the other has not: a row is of one setting."""
    for length, chunk in ((1024, 1), (8192, 2)):
        rows = [{"length": length, "accuracy": 0.5, "n": 4}]
        config = {"lengths": [length], "working": {**WORKING, "chunk": chunk}}
        write(tmp_path, f"k{length}", "passkey", {"accuracy": 0.5}, config, rows=rows)
        config = {"system": "pruned", "keep": 0.25, "working": {**WORKING, "chunk": chunk}}
        write(tmp_path, f"n{chunk}", "needles", {"nll": chunk / 4, "exact": 0.1, "kept": 0.2}, config)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| hiermem (attention), budget 512, chunk 1 | 0.500, n 4 |  |" in page
    assert "| hiermem (attention), budget 512, chunk 2 |  | 0.500, n 4 |" in page
    assert "| attention, chunk 1 | 0.250 | 0.250 |" in page


def test_parts_of_one_setting_share_a_row(tmp_path: Path) -> None:
    for length in (1024, 8192):
        rows = [{"length": length, "accuracy": 0.5, "interval": [0.25, 0.75], "n": 4}]
        config = {"lengths": [length], "working": WORKING}
        write(tmp_path, f"k{length}", "passkey", {"accuracy": 0.5}, config, rows=rows)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    shown = "0.500 (0.250 to 0.750), n 4"
    assert f"| hiermem (attention), budget 512 | {shown} | {shown} |" in page


def test_a_setting_that_only_some_have_tells_them_apart(tmp_path: Path) -> None:
    """By the first one that does: what follows from it is left out."""
    for name, value, more in (("a", 0.25, {}), ("b", 0.75, {"namm": {"hop": 16, "rank": 8}})):
        rows = [{"length": 1024, "accuracy": value, "n": 4}]
        config = {"working": WORKING, **more}
        write(tmp_path, name, "passkey", {"accuracy": value}, config, rows=rows)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    assert "| hiermem (attention), budget 512, hop None | 0.250, n 4 |" in page
    assert "| hiermem (attention), budget 512, hop 16 | 0.750, n 4 |" in page


COSTS = {"prompt_tokens": 640.0, "live_bytes": 2.0**21, "first_token_seconds": 0.5}


def test_a_leaderboard_has_the_best_on_top_with_intervals_and_costs(tmp_path: Path) -> None:
    for name, config, value in (
        ("four", {"system": "bm25", "passages": 4}, 0.5),
        ("one", {"system": "bm25", "passages": 1}, 0.25),
        ("own", {"system": "hiermem", "working": WORKING}, 0.75),
        ("half", {"system": "pruned", "keep": 0.5, "working": WORKING}, 0.125),
    ):
        metrics = {"accuracy": value}
        intervals = {"accuracy": [value - 0.125, value + 0.125]}
        config = {"model": "m", **config}
        write(tmp_path, name, "pubmedqa", metrics, config, intervals=intervals, costs=COSTS)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    rows = [line for line in page.partition("## PubMedQA")[2].splitlines() if line.startswith("| ")]
    assert rows == [
        "| method | accuracy | n | prompt tokens | live MiB | first token, s |",
        "| --- | --- | --- | --- | --- | --- |",
        "| hiermem (attention), budget 512 | 0.750 (0.625 to 0.875) | 7 | 640 | 2.00 | 0.500 |",
        "| bm25, 4 passages | 0.500 (0.375 to 0.625) | 7 | 640 | 2.00 | 0.500 |",
        "| bm25, 1 passage | 0.250 (0.125 to 0.375) | 7 | 640 | 2.00 | 0.500 |",
        "| attention, keep 0.5 | 0.125 (0.000 to 0.250) | 7 | 640 | 2.00 | 0.500 |",
    ]
    assert "![PubMedQA, fused, m](pubmedqa.png)" in page


def test_the_first_table_has_all_backbones_and_the_range_of_settings(tmp_path: Path) -> None:
    for model in ("m", "folder/other"):
        for passages in (1, 4):
            config = {"model": model, "system": "bm25", "passages": passages}
            write(tmp_path, f"{passages}{model[0]}", "pubmedqa", {"accuracy": passages / 8}, config)
        config = {"model": model, "system": "bm25"}
        rows = [{"length": 1024, "accuracy": 0.5, "interval": [0.25, 0.75], "n": 4}]
        write(tmp_path, f"key{model[0]}", "passkey", {"accuracy": 0.5}, config, rows=rows)
        write(
            tmp_path,
            f"alone{model[0]}",
            "passkey",
            {"accuracy": 0.5},
            {"model": model, "system": "closed"},
            rows=rows,
        )
    first = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8").partition("\n## P")[0]
    assert [line for line in first.splitlines() if line.startswith("#")] == [
        "# Results",
        "## All tasks",
        "### m",
        "### other",
    ]
    assert first.count("| task | score | bm25 | n |") == 2
    assert first.count("| PubMedQA, fused | accuracy | 0.125 to 0.500, 2 settings | 7 |") == 2
    assert first.count("| Pass key, length 1,024 | accuracy | 0.500 (0.250 to 0.750) | 4 |") == 2


def test_the_value_of_tiers_is_told_for_a_model_whole_without_and_alone(tmp_path: Path) -> None:
    parts = {"longterm": {"top_k": 8}, "summary": {"tokens": 1}}
    off = {"longterm": {"top_k": 0}, "summary": {"tokens": 0}}
    for name, value, changes in (
        ("all", 0.75, {}),
        ("without", 0.5, {"longterm": off["longterm"]}),
        ("alone", 0.25, off),
    ):
        config = {"model": "tiered", "backbone": "m", "working": WORKING, **parts, **changes}
        write(tmp_path, name, "pubmedqa", {"accuracy": value}, config)
    page = build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")
    tiers = page.partition("## The value of each tier")[2].partition("\n## ")[0]
    assert "| tiers | PubMedQA, fused |" in tiers
    assert "| all | 0.750 |" in tiers
    assert "| without long-term memory | 0.500 |" in tiers
    assert "| working memory alone | 0.250 |" in tiers
    (tmp_path / "without.json").unlink()
    (tmp_path / "alone.json").unlink()
    assert "The value of each tier" not in build(tmp_path, tmp_path / "page.md")[0].read_text("utf-8")


def test_the_interval_of_a_mean_over_kinds_is_narrower_than_theirs() -> None:
    report = kinds("bm25", "a", "b")
    report["rows"] = [{**row, "interval": [row["score"] - 0.3, row["score"] + 0.3]} for row in report["rows"]]
    half = 0.3 * math.sqrt(2) / 2
    low, high = conditions(Kinds.figures(report))[4096].intervals["score"]
    assert (low, high) == (pytest.approx(0.125 - half), pytest.approx(0.125 + half))


def test_the_interval_of_few_answers_is_not_that_of_sure_ones() -> None:
    """One answer of each kind, each sure of itself: only the kinds tell how much they vary."""
    report = kinds("bm25", *"abcdefgh")
    report["rows"] = [
        {**row, "score": place % 2, "n": 1, "interval": [place % 2] * 2}
        for place, row in enumerate(report["rows"])
    ]
    (mean,) = conditions(Kinds.figures(report)).values()
    low, high = mean.intervals["score"]
    assert mean.values["score"] == 0.5 and 0.1 <= low < 0.3 and 0.7 < high <= 0.9
    (alone,) = conditions(Kinds.figures({**report, "rows": report["rows"][:1]})).values()
    assert not alone.intervals


class Kinds(Section):
    headline = "score"
    axis = "length"
    by = "task"
    told = ("tasks",)


def kinds(method: str, *tasks: str) -> Report:
    rows = [{"task": task, "length": 4096, "score": place / 4, "n": 5} for place, task in enumerate(tasks)]
    config = {"system": method, "tasks": list(tasks)}
    return {"task": "kinds", "metrics": {"score": 0.5}, "rows": rows, "n": 10, "config": config}


def test_the_mean_over_kinds_is_given_where_all_were_measured() -> None:
    lines = Kinds.table([kinds("bm25", "a", "b", "c"), kinds("full", "a", "b")])
    assert "| bm25 | 0.250 | 0.000 | 0.250 | 0.500 | 15 |" in lines
    assert "| full |  | 0.000 | 0.250 |  | 10 |" in lines
    (panel,) = Kinds.panels([kinds("bm25", "a", "b"), kinds("closed", "a", "b"), kinds("full", "a")])
    assert [line.label for line in panel.lines] == ["bm25", "closed"]


def test_costs_of_examples_are_told_by_length() -> None:
    rows = [{"length": length, "accuracy": 0.5, "n": 2} for length in (1024, 8192)]
    examples = [{"length": row["length"], **COSTS, "live_bytes": row["length"] * 2**10} for row in rows]
    report = {"task": "passkey", "metrics": {}, "rows": rows, "n": 4, "examples": examples}
    lines = TASKS["passkey"].table([{**report, "config": {"system": "bm25"}}])
    assert "| bm25 | 640 / 1.00 / 0.500 | 640 / 8.00 / 0.500 |" in lines
    panels = TASKS["passkey"].panels([{**report, "config": {"system": "bm25"}}])
    assert [(panel.x_label, panel.lines[0].x) for panel in panels] == [
        ("length", [1024, 8192]),
        ("live MiB when the answer begins", [1.0, 8.0]),
        ("seconds to the first token", [0.5, 0.5]),
    ]


@pytest.mark.parametrize(("families", "budgets"), [(3, 3), (4, 4), (12, 2), (30, 9)])
def test_no_two_lines_of_a_plot_look_alike(families: int, budgets: int) -> None:
    pytest.importorskip("matplotlib")
    lines = [
        Line(f"m{family}, budget {budget}", f"m{family}", [1, 2], [family, budget])
        for family in range(families)
        for budget in range(budgets)
    ]
    drawn = chart([Panel("x", "y", lines)]).axes[0].get_lines()
    assert len(drawn) == len(lines)
    from matplotlib.colors import to_hex

    colours = [to_hex(line.get_color()) for line in drawn]
    looks = {(c, str(line._unscaled_dash_pattern)) for c, line in zip(colours, drawn, strict=True)}
    assert len(looks) == len(lines)
    assert len(set(colours)) == (len(lines) if len(lines) <= MOST_COLOURS else families)
    dashes = {line.get_label().partition(", ")[2]: str(line._unscaled_dash_pattern) for line in drawn}
    assert len(set(dashes.values())) == budgets  # the style is the budget's


def test_copies_hold_all_that_the_page_shows_and_no_texts(tmp_path: Path) -> None:
    examples = [{"nll": 1.0, "answer": "a long text " * 100, "shown": ["more"]}, {"nll": 3.0, "answer": ""}]
    results, copies = tmp_path / "results", tmp_path / "copies"
    results.mkdir()
    config = {"system": "full", "keep": 1.0}
    write(results, "full", "needles", {"nll": 2.0, "exact": 0.5}, config, examples=examples)
    written = build(results, tmp_path / "page.md", copies)
    assert written[-1] == copies / "full.json"
    copy = written[-1].read_text("utf-8")
    assert "long text" not in copy and "more" not in copy
    assert json.loads(copy)["examples"] == [{"nll": 1.0}, {"nll": 3.0}]
    row = {"task": "vt", "length": 4096}
    asked = [{**row, **COSTS, "score": 1.0, "answer": "a long text"}]
    scored = [{**row, "score": 1.0, "n": 1}]
    write(results, "ruler", "ruler", {"score": 1.0}, {"system": "full"}, rows=scored, examples=asked)
    build(results, tmp_path / "page.md", copies)  # and once more
    assert "| 640 | 2.00 | 0.500 |" in (tmp_path / "page.md").read_text()
    build(copies, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == (tmp_path / "page.md").read_text()
    (copies / "full.json").write_text("mine")
    with pytest.raises(InputError, match="would be lost: give another to --copies"):
        build(results, tmp_path / "page.md", copies)


def test_results_on_dumped_prompts_stand_beside_ours(tmp_path: Path) -> None:
    prompts, results = tmp_path / "prompts.jsonl", tmp_path / "results"
    results.mkdir()
    ours = {"model": "folder/m", "dtype": "float32", "device": "cpu", "data": "d1", "length": 2000, "seed": 3}
    scores = {"nll": 2.0, "exact": 0.5}
    write(
        results,
        "ours",
        "needles",
        scores,
        {**ours, "system": "full", "keep": 1.0, "limit": 100, "working": WORKING},
    )
    write_ground(prompts, "needles", {**ours, "system": "pruned", "limit": 100, "working": WORKING})
    theirs = {**read_ground(prompts), "system": "kvpress snapkv", "keep": 0.5, "limit": 24, "prompts": "p"}
    assert "folder" not in json.dumps(theirs)
    write(results, "theirs", theirs["task"], scores, theirs)
    page = build(results, tmp_path / "page.md")[0].read_text("utf-8").partition("## Needles")[2]
    assert page.count("| system | keep |") == 1
    assert "| kvpress snapkv | 0.500 |" in page and "| full | 1.00 |" in page
    ground_file(prompts).write_text("[]")
    with pytest.raises(InputError, match=r"does not say what prompts\.jsonl was made from"):
        read_ground(prompts)
    with pytest.raises(InputError, match="would be lost: give another to --dump"):
        write_ground(prompts, "needles", ours)


def test_the_page_of_the_documentation_is_of_its_results(tmp_path: Path) -> None:
    """Every result is shown, none is large, and every plot that the page links to is there."""
    pytest.importorskip("matplotlib")
    folder = Path(__file__).resolve().parent.parent / "docs" / "results"
    build(folder, tmp_path / "README.md")
    page = (tmp_path / "README.md").read_text("utf-8")
    assert (folder / "README.md").read_text("utf-8") == page
    for plot in re.findall(r"\]\((.*?\.png)\)", page):
        assert (folder / plot).exists() and (tmp_path / plot).exists()
    for file in folder.glob("*.json"):
        command = json.loads(file.read_text("utf-8")).get("command")
        assert command is None or command in page
    assert sum(file.stat().st_size for file in folder.iterdir()) < 3_000_000


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
    for result, policy in (("full", "full"), ("window", "window")):
        given = pg19(policy, 512, 28.0)
        write(tmp_path, result, "pg19", given["metrics"], given["config"], rows=given["rows"])
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
