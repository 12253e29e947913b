"""One Markdown page with tables and plots from the JSON results of a folder."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hiermem.errors import InputError
from hiermem.eval.result_log import replaced, writable

Report = dict[str, Any]
_ODD = (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""Errors that come of results that are none."""

PNG = b"\x89PNG\r\n\x1a\n"
"""How every picture begins."""

_TITLE = b"# Results"
_WITHOUT_BUDGET = ("full", "full_cache", "segment_local", "none", "forget")


def build(folder: Path, page: Path) -> list[Path]:
    """Write ``page`` and, beside it, its plots; returns all files written.

    Raises:
        InputError: the folder holds no results, or a file that is none.
    """
    by_task: dict[str, list[Report]] = defaultdict(list)
    for file in sorted(folder.glob("*.json")):
        report = _read(file)
        by_task[report["task"]].append(report)
    if not by_task:
        raise InputError(f"There are no results in {folder}: make some with `hiermem eval … --out`.")
    writable(page, "--page", _TITLE)
    lines, plots = [_TITLE.decode(), ""], []
    for task in [*(name for name in _SECTIONS if name in by_task), *sorted(set(by_task) - set(_SECTIONS))]:
        try:
            made, drawn = _part(task, by_task[task], page.parent)
        except InputError:
            raise
        except _ODD as error:
            raise InputError(
                f"The results of {task!r} in {folder} do not go together ({type(error).__name__}): move some "
                f"elsewhere."
            ) from error
        lines += made
        plots += drawn
    replaced(page, "\n".join(lines).rstrip() + "\n")
    return [page, *plots]


def _part(task: str, reports: Sequence[Report], folder: Path) -> tuple[list[str], list[Path]]:
    """The lines of a task's part of the page, and the plots that it shows, written into ``folder``."""
    title, section = _section(task)
    lines, plots, plot = [f"## {title}", "", *section(reports)], [], _PLOTS.get(task)
    if plot is not None:
        plots.append(writable(folder / f"{task}.png", "--page", PNG))
        plot(reports, plots[0])
        lines += ["", f"![{title}]({plots[0].name})"]
    return [*lines, "", *_commands(reports), ""], plots


def _read(file: Path) -> Report:
    """One result, of which a section of the page can be made.

    Raises:
        InputError: it is none.
    """
    try:
        if not file.is_file():
            raise TypeError("no file")
        report = json.loads(file.read_text("utf-8"))
        if not isinstance(report["metrics"], dict) or not isinstance(report["config"], dict):
            raise TypeError("no metrics")
        _section(report["task"])[1]([report])
        _commands([report])
    except (OSError, *_ODD) as error:
        raise InputError(
            f"{file} is no result of hiermem ({type(error).__name__}): move it elsewhere."
        ) from error
    return report


def _section(task: str) -> tuple[str, Callable[[Sequence[Report]], list[str]]]:
    """Title and maker of a task's part of the page."""
    return _SECTIONS.get(task, (as_text(task), _plain))


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A Markdown table; numbers are given three to four significant digits, None is left empty."""
    lines = [list(map(_cell, line)) for line in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return ["| " + " | ".join(line) + " |" for line in lines]


def as_text(words: str) -> str:
    """Markdown that shows these very words, on one line; results may hold anything."""
    line = "".join(letter if letter.isprintable() else " " for letter in words)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(line, quote=False))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return as_text(str(value))
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 100 else f"{value:,.0f}"


def _commands(reports: Sequence[Report]) -> list[str]:
    known = [report["command"] for report in reports if "command" in report]
    fence = "`" * (max((len(run) for run in re.findall("`+", "".join(known))), default=0) + 1)
    return ["Made by:", "", f"{fence:`<3}sh", *known, f"{fence:`<3}"] if known else []


def _plain(reports: Sequence[Report]) -> list[str]:
    names = sorted({name for report in reports for name in report["metrics"]})
    return table([*names, "n"], [[*(r["metrics"].get(name) for name in names), r["n"]] for r in reports])


def _system(report: Report) -> str:
    """A configuration in a few words."""
    config = report["config"]
    system = config.get("system", "hiermem")
    if system not in ("hiermem", "pruned", "compressed"):
        return system
    words = config["working"]["policy"] if "working" in config else ""
    return {"pruned": words, "compressed": f"{words}, compressed"}.get(system, f"hiermem ({words})")


def _named(
    reports: Sequence[Report], cells: Callable[[Report], Collection[Any]], shown: str = ""
) -> list[tuple[str, Report]]:
    """Reports under the names of their systems; where two would share a cell, with what they differ in.

    Args:
        shown: setting that the table's columns say.
    """
    groups: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        groups[_system(report)].append(report)
    named = []
    for name, members in groups.items():
        counts = Counter(cell for report in members for cell in cells(report))
        double = [r for r in members if any(counts[cell] > 1 for cell in cells(r))]
        flat = [(tuple(cells(report)), dict(_flat(report["config"]))) for report in double]
        differ = _telling_apart(flat, shown)
        for report in members:
            own = dict(_flat(report["config"]))
            named.append((", ".join([name, *(f"{key} {own.get(key)}" for key in differ)]), report))
    return named


def _telling_apart(flat: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], shown: str) -> list[str]:
    """The first settings by which all that share a cell differ.

    Args:
        flat: cells and settings of each report.
    """
    keys = dict.fromkeys(key for _, own in flat for key in own if key != shown)
    chosen: list[str] = []
    for key in keys:
        if len({(cell, *(str(own.get(k)) for k in chosen)) for cell, own in flat}) == len(flat):
            break
        if len({str(own.get(key)) for _, own in flat}) > 1:
            chosen.append(key)
    return chosen


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value


def _pivot(reports: Sequence[Report], across: str, metric: str, label: str) -> list[str]:
    """Systems down, a setting across, one metric in the cells, with its interval where there is one."""
    columns = sorted({report["config"][across] for report in reports})
    cells: dict[str, dict[Any, Any]] = defaultdict(dict)
    for name, report in _named(reports, lambda r: [r["config"][across]], shown=across):
        if metric in report["metrics"]:
            interval = report.get("intervals", {}).get(metric)
            cells[name][report["config"][across]] = _cell(report["metrics"][metric]) + _between(interval)
    return table(
        [label, *columns], [[system, *(row.get(c) for c in columns)] for system, row in cells.items()]
    )


def _between(interval: Sequence[float] | None) -> str:
    return f" ({_cell(interval[0])} to {_cell(interval[1])})" if interval else ""


def _length(reports: Sequence[Report]) -> list[str]:
    header = [
        "system",
        "tokens",
        "tokens/s",
        "of the bare limit",
        "peak MiB",
        "first token s",
        "decoded/s",
        "KV MiB",
    ]
    rows = []
    for row in sorted(_rows(reports), key=lambda row: row["length"]):
        if "failed" in row:
            rows.append([row["system"], row["length"], row["failed"], *[None] * 5])
            continue
        kv = row["kv_bytes"] / 2**20 if "kv_bytes" in row else None
        peak = row["peak_rss_bytes"] / 2**20
        speed = [row["tokens_per_second"], row.get("ratio_to_bare"), peak, row.get("first_token_seconds")]
        rows.append([row["system"], row["length"], *speed, row.get("decoded_tokens_per_second"), kv])
    return table(header, rows)


def _rows(reports: Sequence[Report]) -> list[dict[str, Any]]:
    return [row for report in reports for row in report["rows"]]


def _pg19(reports: Sequence[Report]) -> list[str]:
    """Perplexities; where a full-attention run is there, the share of the gap to the window it closes."""
    books = sorted({row["book"] for row in _rows(reports)})
    rows = []
    for report in sorted(reports, key=_pg19_order):
        config, mean = report["config"], report["metrics"]["perplexity"]
        budget = config["working"]["budget"] if config["policy"] not in _WITHOUT_BUDGET else None
        beside = [r for r in reports if _pg19_text(r) == _pg19_text(report)]
        one = {row["book"]: row["perplexity"] for row in report["rows"]}
        share = _pg19_share(mean, budget, beside)
        read = [_pg19_name(config), budget, config.get("tokens")]
        rows.append([*read, mean, share, *(one.get(book) for book in books)])
    return table(["policy", "budget", "tokens", "mean", "share of the gap closed", *books], rows)


def _pg19_slice(report: Report) -> list[Any]:
    """What was read and scored."""
    return [report["config"].get(name) for name in ("books", "split", "start", "tokens", "score_from")]


def _pg19_text(report: Report) -> list[Any]:
    """What was read and scored, and by what; only figures of the same text are compared."""
    return [*_pg19_slice(report), *(report["config"].get(name) for name in ("data", "model", "dtype"))]


def _pg19_share(mean: float, budget: int | None, beside: Sequence[Report]) -> float | None:
    """How much of the gap from the window policy of the same budget to full attention is closed."""
    full = [r for r in beside if r["config"]["policy"] == "full" and r["config"]["window"]]
    window = [
        r for r in beside if r["config"]["policy"] == "window" and r["config"]["working"]["budget"] == budget
    ]
    if not full or not window or budget is None:
        return None
    best = max(full, key=lambda r: r["config"]["window"])["metrics"]["perplexity"]
    base = window[0]["metrics"]["perplexity"]
    return (base - mean) / (base - best) if base > best else None


def _pg19_name(config: dict[str, Any]) -> str:
    name = config["policy"] + (f", windows of {config['window']}" if config["window"] else "")
    trained = [words for part, words in (("summary", "memory"), ("mamba", "Mamba heads")) if config.get(part)]
    name += f", {' and '.join(trained)} of {Path(config['model']).name}" if trained else ""
    return name + (f" + {config['overlap']}" if config.get("overlap", 1) > 1 else "")


def _pg19_order(report: Report) -> tuple[bool, int, str]:
    config = report["config"]
    return config["policy"] == "full", config["working"]["budget"], config["policy"]


def _pubmedqa(reports: Sequence[Report]) -> list[str]:
    lines: list[str] = []
    for metric, words in (
        ("accuracy", "Accuracy"),
        ("macro_f1", "Macro-F1"),
        ("recall", "Recall of the right abstract"),
        ("long_answer_perplexity", "Perplexity of the long answer"),
    ):
        lines += [f"{words}, by M abstracts read together:", ""]
        lines += [*_pivot(reports, "together", metric, "system"), ""]
    return lines[:-1]


def _retrieval(reports: Sequence[Report]) -> list[str]:
    names = ("recall_at_1", "recall_at_5")
    rows = [[row["system"], *(row[name] for name in names), r["n"]] for r in reports for row in r["rows"]]
    return table(["key", "recall@1", "recall@5", "n"], rows)


def _interleaved(reports: Sequence[Report]) -> list[str]:
    names = ("right", "weight", "perplexity", "without_recall")
    rows = [
        [name, r["config"]["model"], len(r["rows"]), *(r["metrics"][metric] for metric in names), r["n"]]
        for name, r in _named(reports, lambda r: [r["config"]["model"]])
    ]
    header = ["system", "model", "pairs", "right book recalled most", "attention on it", "perplexity"]
    return table([*header, "without recall", "n"], rows)


def _needles(reports: Sequence[Report]) -> list[str]:
    """Also on the first prompts alone, as many as the shortest run has: those are the same for all."""
    fewest = min(report["n"] for report in reports)
    named = _named(reports, lambda r: [r["config"]["keep"]])
    rows = []
    for name, report in sorted(
        named, key=lambda pair: (pair[1]["config"]["keep"], pair[1]["metrics"]["nll"])
    ):
        metrics, intervals = report["metrics"], report.get("intervals", {})
        scores = [_cell(metrics[score]) + _between(intervals.get(score)) for score in ("nll", "exact")]
        examples = report.get("examples", ())[:fewest]
        first = sum(example["nll"] for example in examples) / fewest if examples else None
        first = metrics["nll"] if report["n"] == fewest else first
        rows.append([name, report["config"]["keep"], *scores, first, metrics.get("kept"), report["n"]])
    header = ["system", "keep", "NLL per answer token", "exact", f"NLL of the first {fewest}", "kept", "n"]
    return table(header, rows)


def _by_length(metric: str) -> Callable[[Sequence[Report]], list[str]]:
    def section(reports: Sequence[Report]) -> list[str]:
        lengths = sorted({row["length"] for row in _rows(reports)})
        cells: dict[str, dict[int, Any]] = defaultdict(dict)
        for name, report in _named(reports, lambda r: [row["length"] for row in r["rows"]]):
            for row in report["rows"]:
                interval = _between(row.get("interval"))
                cells[name][row["length"]] = f"{row[metric]:.2f}{interval}, n {row['n']}"
        header = ["system", *(f"{length:,} tokens" for length in lengths)]
        return table(header, [[name, *(row.get(n) for n in lengths)] for name, row in cells.items()])

    return section


def new_figure() -> Any:
    """An empty figure of the page's width.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("Plots need matplotlib: install hiermem with the extra eval.") from error
    return Figure(figsize=(9, 3.6), layout="constrained")


def _label(name: str) -> str:
    """A name as matplotlib shows it, which takes dollars for formulas and hides what an underscore begins."""
    return name.replace("$", r"\$").removeprefix("_")


def _plot_length(reports: Sequence[Report], path: Path) -> None:
    figure = new_figure()
    speed, memory = figure.subplots(1, 2)
    by_system: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(reports):
        if "failed" not in row:
            by_system[row["system"]].append(row)
    for name, rows in by_system.items():
        rows.sort(key=lambda row: row["length"])
        lengths = [row["length"] for row in rows]
        label = _label(name)
        speed.plot(lengths, [row["tokens_per_second"] for row in rows], marker="o", label=label)
        memory.plot(lengths, [row["peak_rss_bytes"] / 2**20 for row in rows], marker="o", label=label)
    for axes, title in ((speed, "reading, tokens per second"), (memory, "peak resident memory, MiB")):
        axes.set(xscale="log", xlabel="tokens read", title=title, ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=120)


def _plot_pg19(reports: Sequence[Report], path: Path) -> None:
    """Mean log-perplexity along the books, relative to that of all systems together."""
    figure = new_figure()
    axes = figure.subplots()
    longest = max(reports, key=lambda report: report["n"])
    same = [report for report in reports if _pg19_slice(report) == _pg19_slice(longest)]
    for report in sorted(same, key=_pg19_order):
        curves = [row["curve"] for row in report["rows"]]
        curves = [curve for curve in curves if len(curve) == len(curves[0])]  # a short text has fewer parts
        config = report["config"]
        budget = "" if config["policy"] == "full" else f" {config['working']['budget']}"
        place = np.linspace(0, 1, len(curves[0]) + 1)[1:]
        axes.plot(
            place,
            np.cumsum(np.mean(curves, 0)) / np.arange(1, len(place) + 1),
            label=_label(_pg19_name(config) + budget),
        )
    axes.set(xlabel="share of the text read", ylabel="mean log-perplexity so far, nats", title="PG-19")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)


_SECTIONS: dict[str, tuple[str, Callable[[Sequence[Report]], list[str]]]] = {
    "length": ("Speed and memory against length", _length),
    "pg19": ("PG-19 perplexity", _pg19),
    "pubmedqa": ("PubMedQA, fused", _pubmedqa),
    "retrieval": ("PubMedQA retrieval", _retrieval),
    "needles": ("Needles", _needles),
    "passkey": ("Pass key", _by_length("accuracy")),
    "babi-long": ("babi-long", _by_length("exact")),
    "interleaved": ("Interleaved books", _interleaved),
}
_PLOTS: dict[str, Callable[[Sequence[Report], Path], None]] = {"length": _plot_length, "pg19": _plot_pg19}
