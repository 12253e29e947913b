"""Speed and memory against length: every point in a process of its own, so that its peak is its own."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hiermem.errors import HierMemError, InputError
from hiermem.eval.plots import Line, Panel
from hiermem.eval.result_log import ResultLog
from hiermem.eval.section import Section
from hiermem.eval.tables import Report, rows_of, table
from hiermem.resources import now, peak_bytes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hiermem.model import HierMemModel

SYSTEMS = ("hiermem", "full", "bare limit")
QUESTION = "What happened in the end?"
DECODED = 32
WARM_UP = 4


@dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        system: `hiermem`, `full` (transformers with full attention) or `bare limit` (transformers' body on
            the same chunks over an untouched cache of `budget` tokens: what reading costs without a memory).
        length: tokens that are read.
        command: a program that calls `measure` and prints the result as one JSON object.
    """

    system: str
    length: int
    command: Sequence[str]


class TooLongError(HierMemError):
    """A measurement took longer than its limit."""


def check_systems(names: Sequence[str]) -> None:
    """Refuse what cannot be measured.

    Raises:
        InputError: there is no system of such a name.
    """
    for name in names:
        if name not in SYSTEMS:
            raise InputError(f"There is no system {name!r}: choose of {', '.join(SYSTEMS)}.")


def sweep(points: Sequence[Point], repeats: int, log: ResultLog) -> dict[str, Any]:
    """All points, interleaved ``repeats`` times; medians, and the ratio to the bare limit.

    A system that ran out of time or memory at one length is not tried there again, nor at a greater one.

    Raises:
        InputError: a point could not be measured at all.
    """
    from tqdm.auto import tqdm

    measured: dict[tuple[str, int], list[dict[str, Any]]] = {}
    failed: dict[str, int] = {}
    rounds = [(turn, point) for turn in range(repeats) for point in sorted(points, key=lambda p: p.length)]
    for turn, point in tqdm(rounds, desc="bench", disable=None):
        if point.length >= failed.get(point.system, sys.maxsize):
            continue
        row = log.row(f"{point.system}/{point.length}/{turn}", _in_own_process, point)
        if "failed" in row:
            failed[point.system] = point.length
        measured.setdefault((point.system, point.length), []).append(row)
    rows = [_median(system, length, runs) for (system, length), runs in measured.items()]
    limits = {row["length"]: row for row in rows if row["system"] == "bare limit" and "failed" not in row}
    for row in rows:
        if "failed" not in row and row["length"] in limits:
            row["ratio_to_bare"] = row["tokens_per_second"] / limits[row["length"]]["tokens_per_second"]
    return {"metrics": {}, "rows": rows, "n": len(rows)}


def _median(system: str, length: int, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    named = {"system": system, "length": length}
    if any("failed" in run for run in runs):
        return {**named, "failed": next(run["failed"] for run in runs if "failed" in run)}
    return {**named, **{name: statistics.median(run[name] for run in runs) for name in runs[0]}}


def _in_own_process(point: Point) -> dict[str, Any]:
    done = subprocess.run(point.command, capture_output=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode in (-9, 137):
        return {"failed": "more memory than the machine has"}
    reason = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1].removeprefix("hiermem: ")
    raise InputError(reason or f"Measuring {point.system} ended with exit status {done.returncode}.")


def measure(model: "HierMemModel", ids: "Tensor", system: str, limit: float) -> dict[str, Any]:
    """One point in this process; `failed` says why there is none.

    Args:
        ids: ``[n]`` int64, what is read.
        limit: seconds after which it is given up.
    """
    import torch

    run = {"hiermem": _hiermem, "full": _full, "bare limit": _bare_limit}[system]
    clock = _Clock(limit, model.device)
    try:
        with torch.inference_mode():
            row = run(model, ids.to(model.device), clock)
    except TooLongError as error:
        return {"failed": str(error)}
    except torch.OutOfMemoryError:
        return {"failed": "more memory than the device has"}
    return row | peak_bytes(model.device)


class _Clock:
    """Seconds of reading; raises `TooLongError` past the limit."""

    def __init__(self, limit: float, device: "torch.device") -> None:
        self.limit, self.device, self.begin = limit, device, now(device)

    def now(self) -> float:
        moment = now(self.device)
        if moment - self.begin > self.limit:
            raise TooLongError(f"more than {self.limit:.0f} s")
        return moment

    def seconds(self, work: Callable[..., object], *arguments: Any) -> float:
        before = self.now()
        work(*arguments)
        return self.now() - before


def _speeds(read: float, length: int, first: float, decode: float) -> dict[str, Any]:
    return {
        "tokens_per_second": length / read,
        "first_token_seconds": first,
        "decoded_tokens_per_second": DECODED / decode,
    }


def _hiermem(model: "HierMemModel", ids: "Tensor", clock: _Clock) -> dict[str, Any]:
    chunk = model.config.chunk
    model.read(ids[: WARM_UP * chunk], progress=False)
    memory, read = model.new_memory(), 0.0
    for at in range(0, len(ids), 8 * chunk):
        part = ids[at : at + 8 * chunk]
        read += clock.seconds(model.read, part, memory, False)
    model.ask(memory, QUESTION, max_new_tokens=1)
    first = clock.seconds(model.ask, memory, QUESTION, None, 1)
    decode = clock.seconds(_decode, model, memory.working.copy())
    return {**_speeds(read, len(ids), first, decode), "kv_bytes": memory.working.nbytes}


def _decode(model: "HierMemModel", working: Any) -> None:
    import torch

    token = torch.ones((1, 1), dtype=torch.int64, device=model.device)
    reader = model.reader
    for _ in range(DECODED):
        token = reader.logits(working, token, 1).argmax(-1)


def _full(model: "HierMemModel", ids: "Tensor", clock: _Clock) -> dict[str, Any]:
    from transformers import DynamicCache

    from hiermem.cache import cache_argument

    backbone, chunk = model.backbone, model.config.chunk
    name = cache_argument(backbone)
    question = model.reader.encode(QUESTION)

    def body(cache: Any, part: "Tensor") -> None:
        backbone.base_model(input_ids=part[None], **{name: cache}, use_cache=True)

    warm = DynamicCache(config=backbone.config)
    for at in range(0, min(WARM_UP * chunk, len(ids)), chunk):
        body(warm, ids[at : at + chunk])
    cache, read = DynamicCache(config=backbone.config), 0.0
    for at in range(0, len(ids), chunk):
        read += clock.seconds(body, cache, ids[at : at + chunk])

    def step(tokens: "Tensor") -> "Tensor":
        output = backbone(input_ids=tokens, **{name: cache}, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1)

    def decode() -> None:
        token = question[:, -1:]
        for _ in range(DECODED):
            token = step(token)

    first = clock.seconds(step, question)
    seconds = clock.seconds(decode)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return {**_speeds(read, len(ids), first, seconds), "kv_bytes": held}


def _bare_limit(model: "HierMemModel", ids: "Tensor", clock: _Clock) -> dict[str, Any]:
    from hiermem.eval.overhead import bare_reader

    chunk, budget = model.config.chunk, model.config.working.budget
    read = bare_reader(model, ids[None], budget, chunk)
    for at in range(0, min(WARM_UP * chunk, len(ids) - chunk), chunk):
        read(at)
    starts = range(0, len(ids) - chunk + 1, chunk)
    seconds = sum(clock.seconds(read, at) for at in starts)
    return {"tokens_per_second": len(starts) * chunk / seconds}


class SpeedSection(Section):
    """How results of `hiermem bench length` are shown."""

    name = "length"
    title = "Speed and memory against length"
    told = ("lengths", "systems", "methods", "repeats", "limit")

    @classmethod
    def table(cls, reports: Sequence[Report]) -> list[str]:
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
        for row in sorted(rows_of(reports), key=lambda row: row["length"]):
            if "failed" in row:
                rows.append([row["system"], row["length"], row["failed"], *[None] * 5])
                continue
            kv = row["kv_bytes"] / 2**20 if "kv_bytes" in row else None
            peak = row["peak_rss_bytes"] / 2**20
            speed = [row["tokens_per_second"], row.get("ratio_to_bare"), peak, row.get("first_token_seconds")]
            rows.append([row["system"], row["length"], *speed, row.get("decoded_tokens_per_second"), kv])
        return table(header, rows)

    @classmethod
    def panels(cls, reports: Sequence[Report]) -> list[Panel]:
        speed, memory = dict[str, Line](), dict[str, Line]()
        for row in rows_of(reports):
            if "failed" not in row:
                name = row["system"]
                for lines, value in (
                    (speed, row["tokens_per_second"]),
                    (memory, row["peak_rss_bytes"] / 2**20),
                ):
                    line = lines.setdefault(name, Line(name, name))
                    line.x.append(row["length"])
                    line.y.append(value)
        drawn = ((speed, "reading, tokens per second"), (memory, "peak resident memory, MiB"))
        return [
            Panel(
                "tokens read", words, [line.in_order() for line in lines.values()], log=True, from_zero=True
            )
            for lines, words in drawn
            if lines
        ]
