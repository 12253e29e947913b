"""PG-19: streaming perplexity over books (Rae et al., arXiv 1911.05507)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hiermem.errors import InputError
from hiermem.eval import hub
from hiermem.eval.metrics import perplexity
from hiermem.eval.result_log import ResultLog
from hiermem.eval.scoring import stream_nll
from hiermem.memory.working import WorkingMemory
from hiermem.text import beginning, encode_with_spans

if TYPE_CHECKING:
    from hiermem.model import HierMemModel


@dataclass(frozen=True)
class Slice:
    """Which part of each book is read and scored, in tokens.

    Attributes:
        start: first token that is read.
        tokens: how many are read; None reads to the end.
        score_from: predictions made before this token of the slice are not scored.
        window: forget everything after so many tokens; None never does.
        overlap: tokens of the last window that are read again, unscored, before the next: 1 gives isolated
            segments, 32 HMT without its memory (its sensory tokens).
    """

    start: int = 0
    tokens: int | None = None
    score_from: int = 0
    window: int | None = None
    overlap: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.score_from < 0 or (self.tokens is not None and self.tokens < 2):
            raise InputError("--start-token and --score-from must not be negative, --max-tokens at least 2.")
        if self.overlap < 1 or (self.window is not None and self.window < 1):
            raise InputError("--window and --overlap must be at least 1.")
        if self.overlap > 1 and (self.window is None or self.overlap >= self.window):
            raise InputError(f"--overlap {self.overlap} needs a --window that is wider.")
        if self.tokens is not None and self.score_from > self.tokens - 2:
            raise InputError(
                f"--score-from {self.score_from} leaves nothing of {self.tokens} tokens to score."
            )


def books(data: Path, split: str, book: str | None, limit: int | None) -> dict[str, str]:
    """Texts by book id: from one file, from ``data/split/*.txt``, or from a dataset on the hub."""
    if hub.is_name(data):
        found = hub.rows(str(data), split, lambda row: (Path(row["url"]).name, row["text"]))
        wanted = (each for each in found if book in (None, each[0]))
        texts = dict(islice(wanted, limit if book is None else 1))
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
    try:
        return {file.stem: file.read_text(encoding="utf-8") for file in files[:limit]}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"A book under {data} cannot be read as UTF-8 text: {error}.") from error


def evaluate(
    model: "HierMemModel",
    texts: dict[str, str],
    part: Slice,
    journal: ResultLog,
    progress: bool = True,
) -> dict[str, Any]:
    """Perplexity per token and per word and bits per byte: per book, and their means over books.

    The mean is the exponential of the mean log-perplexity over books; `n` counts scored tokens.
    """
    rows = [
        journal.row(name, _evaluate_book, model, name, text, part, progress) for name, text in texts.items()
    ]
    mean = {
        name: math.exp(sum(math.log(row[name]) for row in rows) / len(rows))
        for name in ("perplexity", "word_perplexity")
    }
    mean["bits_per_byte"] = sum(row["bits_per_byte"] for row in rows) / len(rows)
    return {"metrics": mean, "n": sum(row["n"] for row in rows), "rows": rows}


def _evaluate_book(
    model: "HierMemModel", name: str, text: str, part: Slice, progress: bool
) -> dict[str, Any]:
    from tqdm.auto import tqdm

    tokens, spans = encode_with_spans(model.tokenizer, text)
    end = len(tokens) if part.tokens is None else part.start + part.tokens
    first = beginning(model.tokenizer)
    ids = torch.tensor(first + tokens[part.start : end])
    if len(ids) < len(first) + part.score_from + 2:
        raise InputError(
            f"Book {name} has {len(tokens)} tokens, too few to score any after token "
            f"{part.start + part.score_from}: lower --start-token or --score-from."
        )
    spans = spans[part.start : end][part.score_from + 1 :]
    scored = text[spans[0][0] : spans[-1][1]]
    blocks: list[torch.Tensor] = []
    live = 0
    with (
        torch.inference_mode(),
        tqdm(
            total=len(ids),
            unit="tok",
            unit_scale=True,
            desc=name,
            disable=None if progress else True,
            delay=2,
        ) as bar,
    ):
        for memory, block in _windows(model, ids, part):
            blocks.append(block)
            live = max(live, memory.frames.counts.peak_tokens)
            bar.update(len(block))
    nll = torch.cat(blocks)[len(first) + part.score_from :]
    total = float(nll.double().sum())
    return {
        "book": name,
        "perplexity": perplexity(total, len(nll)),
        "word_perplexity": perplexity(total, len(scored.split())),
        "bits_per_byte": total / math.log(2) / len(scored.encode("utf-8")),
        "n": len(nll),
        "curve": _curve(nll),
        "live_tokens_max": live,
    }


def _curve(nll: torch.Tensor, parts: int = 32) -> list[float]:
    """Mean negative log-likelihood in nats along the text, in equal parts."""
    return [float(piece.mean()) for piece in nll.tensor_split(min(parts, len(nll)))]


def _windows(
    model: "HierMemModel", ids: torch.Tensor, part: Slice
) -> Iterator[tuple[WorkingMemory, torch.Tensor]]:
    """Negative log-likelihood of every token after the first, once, and the memory it was read with."""
    step, first = part.window or len(ids), torch.tensor(beginning(model.tokenizer), dtype=ids.dtype)
    for start in range(0, len(ids), step):
        known, before = min(part.overlap, start), first if start else first[:0]  # the text has its own
        memory = model.new_recurrent_memory()
        unscored = max(len(before) + known - 1, 0)
        for block in stream_nll(model.reader, memory, torch.cat((before, ids[start - known : start + step]))):
            yield memory, block[unscored:]
            unscored = max(unscored - len(block), 0)
