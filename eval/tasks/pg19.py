"""PG-19: streaming perplexity over books (Rae et al., arXiv 1911.05507)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.comparison import UNBOUNDED, labelled
from hiermem.eval.plots import Line, Panel
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tables import Report, rows_of, table
from hiermem.eval.tasks.base import Task, option, register
from hiermem.memory.policy_names import POLICY_NAMES

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

FULL = "full"
"""Name of plain full attention among the policies."""
_WITHOUT_BUDGET = {FULL, *UNBOUNDED}
"""Policies that no budget binds, by their names in new and in old results."""


def books(data: Path, split: str, book: str | None, limit: int | None) -> dict[str, str]:
    """Texts by book id: from one file, from ``data/split/*.txt``, or from a dataset on the hub."""
    if hub.is_name(data):
        found = hub.rows(str(data), split, lambda row: (Path(row["url"]).name, row["text"]))
        matching = (each for each in found if book in (None, each[0]))
        texts = dict(islice(matching, limit if book is None else 1))
        if not texts:
            raise InputError(f"There is no book {book or ''} in {data} ({split}): give another one.")
        return texts
    if data.is_file():
        if book is not None:
            raise InputError(f"{data} is one book: leave --book out, or give the folder above it.")
        files = [data]
    else:
        files = [file for file in sorted((data / split).glob("*.txt")) if book in (None, file.stem)]
    if not files:
        raise InputError(
            f"There is no book{f' {book}' if book else ''} under {data / split}: give a folder in the layout "
            f"of PG-19 (train, validation, test with one text file for each book), or one text file."
        )
    return read_texts(files[:limit])


def read_texts(files: Sequence[Path]) -> dict[str, str]:
    """Texts by the names of their files, without endings.

    Raises:
        InputError: one cannot be read.
    """
    try:
        return {file.stem: file.read_text(encoding="utf-8") for file in files}
    except (OSError, UnicodeDecodeError) as error:
        name = files[0] if len(files) == 1 else f"A text in {files[0].parent}"
        raise InputError(f"{name} cannot be read as UTF-8 text: {error}.") from error


@dataclass(frozen=True, kw_only=True)
class BookTask(Task):
    """A task on books in the layout of PG-19."""

    data: Path = option(help="Folder or file with the data, or its name on the hub.")
    split: str = option("test", help="train, test or (books) validation; all for PubMedQA from the hub.")
    limit: int | None = option(None, help="Use only so many books, the first by name.", least=1)

    def load(self, config: HierMemConfig) -> dict[str, str]:
        """Texts by the ids of their books."""
        return books(self.data, self.split, None, self.limit)

    def texts(self, data: dict[str, str]) -> Iterable[str]:
        return data.values()


@dataclass(frozen=True, kw_only=True)
class PerplexityTask(Task):
    """Streaming perplexity over texts: teacher-forced, each token scored once.

    Data are texts by name.
    """

    headline = "perplexity"
    lower_is_better = True
    model_options = ("policy", "policy_set", "budget", "chunk", "positions", "evictor")

    start_token: int = option(0, help="First token that is read.")
    max_tokens: int | None = option(None, help="Tokens read of each text.")
    score_from: int = option(0, help="Score only predictions made from this token on.")
    window: int | None = option(None, help="Forget everything after so many tokens.")
    # 1 gives isolated segments; 32, HMT without its memory: its sensory tokens.
    overlap: int = option(1, help="Tokens read again, unscored, at the start of a window.")
    policy: str | None = option(
        None,
        help=f"{', '.join(POLICY_NAMES)}, or full: plain full attention. Default: the model's own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        start, score_from, tokens = self.start_token, self.score_from, self.max_tokens
        if start < 0 or score_from < 0 or (tokens is not None and tokens < 2):
            raise InputError("--start-token and --score-from must not be negative, --max-tokens at least 2.")
        if self.overlap < 1 or (self.window is not None and self.window < 1):
            raise InputError("--window and --overlap must be at least 1.")
        if self.overlap > 1 and (self.window is None or self.overlap >= self.window):
            raise InputError(f"--overlap {self.overlap} needs a --window that is wider.")
        if tokens is not None and score_from > tokens - 2:
            raise InputError(f"--score-from {score_from} leaves nothing of {tokens} tokens to score.")

    def configuration_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """With full attention, those of the bare backbone."""
        if self.policy != FULL:
            return options
        without = ("budget", "positions", "policy_set", "evictor")
        if any(options[name] not in (None, [], "auto") for name in without):
            raise InputError(
                "Full attention keeps everything in place: leave --budget, --positions, --policy-set and "
                "--evictor out."
            )
        return {"preset": "bare", "chunk": options["chunk"]}

    def parts(self) -> tuple[str, ...]:
        return () if self.policy == FULL else ("working", "namm", "summary", "mamba")

    def texts(self, data: dict[str, str]) -> Iterable[str]:
        return data.values()

    def settings(self, data: dict[str, str], config: HierMemConfig) -> dict[str, Any]:
        part = {"start": self.start_token, "tokens": self.max_tokens, "score_from": self.score_from}
        part |= {"window": self.window, "overlap": self.overlap}
        return {
            "books": list(data),
            **part,
            "policy": FULL if self.policy == FULL else config.working.policy,
        }

    def rows(self, model: HierMemModel, data: dict[str, str], log: ResultLog) -> dict[str, Any]:
        """Perplexity per token and per word and bits per byte: per text, and their means over texts.

        The mean is the exponential of the mean log-perplexity over texts; `n` counts scored tokens.
        """
        rows = [log.row(name, self._row, model, name, text) for name, text in data.items()]
        means = {
            name: math.exp(sum(math.log(row[name]) for row in rows) / len(rows))
            for name in ("perplexity", "word_perplexity")
        }
        means["bits_per_byte"] = sum(row["bits_per_byte"] for row in rows) / len(rows)
        return {"metrics": means, "n": sum(row["n"] for row in rows), "rows": rows}

    def _row(self, model: HierMemModel, name: str, text: str) -> dict[str, Any]:
        from hiermem.eval.streaming import Stretch, score_text

        stretch = Stretch(
            start=self.start_token,
            tokens=self.max_tokens,
            score_from=self.score_from,
            window=self.window,
            overlap=self.overlap,
        )
        return {"book": name, **score_text(model, name, text, stretch)}

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
        """Perplexities; where a full-attention run is there, the share of the gap to the window it closes."""
        names = sorted({row["book"] for row in rows_of(reports)})
        rows = []
        for report in sorted(reports, key=_order):
            config, mean = report["config"], report["metrics"]["perplexity"]
            budget = config["working"]["budget"] if config["policy"] not in _WITHOUT_BUDGET else None
            same = [r for r in reports if r["config"].get("model") == config.get("model")]
            by_book = {row["book"]: row["perplexity"] for row in report["rows"]}
            share = _share_of_gap(mean, budget, same)
            read = [_name(config), budget, config.get("tokens")]
            rows.append([*read, mean, share, *(by_book.get(name) for name in names)])
        return table(["policy", "budget", "tokens", "mean", "share of the gap closed", *names], rows)

    @classmethod
    def family(cls, report: Report) -> str:
        """The policy: nothing is recalled."""
        return _name(report["config"])

    @classmethod
    def panels(cls, reports: Sequence[Report]) -> list[Panel]:
        """Mean log-perplexity along the books."""
        lines = []
        for name, report in labelled(sorted(reports, key=_order), _label):
            curves = [row["curve"] for row in report["rows"]]
            curves = [
                curve for curve in curves if len(curve) == len(curves[0])
            ]  # a short text has fewer parts
            parts = len(curves[0])
            means = [sum(curve[part] for curve in curves) / len(curves) for part in range(parts)]
            so_far = [total / (part + 1) for part, total in enumerate(accumulate(means))]
            places = [(part + 1) / parts for part in range(parts)]
            lines.append(Line(name, _name(report["config"]), places, so_far))
        panel = Panel("share of the text read", "mean log-perplexity so far, nats", lines)
        return [panel] if len(lines) > 1 else []


@register
@dataclass(frozen=True, kw_only=True)
class PG19(PerplexityTask, BookTask):
    """Streaming perplexity over books: teacher-forced, each token scored once.

    Examples:

        hiermem eval pg19 --data pg19 --policy window --budget 512 --max-tokens 32768

        hiermem eval pg19 --data book.txt --policy full --window 8192 --json

        hiermem eval pg19 --data pg19 --policy full --window 512 --overlap 32  # HMT without its memory
    """

    name = "pg19"
    title = "PG-19 perplexity"

    book: str | None = option(None, help="Id of one book; default: all.")

    def load(self, config: HierMemConfig) -> dict[str, str]:
        """Texts by the ids of their books."""
        return books(self.data, self.split, self.book, self.limit)

    def settings(self, data: dict[str, str], config: HierMemConfig) -> dict[str, Any]:
        return {**super().settings(data, config), "split": self.split}


def _share_of_gap(mean: float, budget: int | None, same: Sequence[Report]) -> float | None:
    """How much of the gap from the window policy of the same budget to full attention is closed."""
    full = [r for r in same if r["config"]["policy"] == FULL and r["config"]["window"]]
    window = [
        r for r in same if r["config"]["policy"] == "window" and r["config"]["working"]["budget"] == budget
    ]
    if not full or not window or budget is None:
        return None
    best = max(full, key=lambda r: r["config"]["window"])["metrics"]["perplexity"]
    base = window[0]["metrics"]["perplexity"]
    return (base - mean) / (base - best) if base > best else None


def _name(config: dict[str, Any]) -> str:
    name = config["policy"] + (f", windows of {config['window']}" if config["window"] else "")
    trained = [words for part, words in (("summary", "memory"), ("mamba", "Mamba heads")) if config.get(part)]
    name += f", {' and '.join(trained)} of {Path(config['model']).name}" if trained else ""
    return name + (f" + {config['overlap']}" if config.get("overlap", 1) > 1 else "")


def _label(report: Report) -> str:
    """The policy with its budget, where one binds it."""
    config = report["config"]
    budget = "" if config["policy"] in _WITHOUT_BUDGET else f", budget {config['working']['budget']}"
    return f"{_name(config)}{budget}"


def _order(report: Report) -> tuple[bool, int, str]:
    config = report["config"]
    return config["policy"] == FULL, config["working"]["budget"], config["policy"]
