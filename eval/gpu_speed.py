"""Reading on a GPU: as it is, compiled and as CUDA graphs, beside the bare backbone, one text and many rows.

On a processor the plain ways alone are measured: that counts the calls that would start a kernel.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import first_line
from hiermem.eval.kernels import started_kernels
from hiermem.eval.overhead import bare_reader
from hiermem.model import HierMemModel
from hiermem.resources import now

Read = Callable[[int], object]
"""Reads the chunk of a text that begins at a token."""


def measure(model: HierMemModel, ids: Tensor, rounds: int, rows: int) -> list[dict[str, Any]]:
    """Rows of each way to read: tokens a second, kernels a chunk, and their ratio to the backbone's.

    Args:
        ids: ``[n]`` int64, at least so many that the cache is full and the frame moves after half of them.
        rounds: chunks that are timed.
        rows: texts of a batch.
    """
    ids, found = ids.to(model.device), list[dict[str, Any]]()
    with torch.inference_mode():
        for name, make in _ways(model, ids, rows).items():
            count = rows if name.endswith("rows") else 1
            try:
                found.append({"system": name, **_measured(model, make(), ids, rounds, count)})
            except Exception as error:  # the others are worth knowing
                found.append({"system": name, "failed": first_line(error)})
    if (bare := found[0].get("kernels")) is not None:
        for row in found:
            row |= {"kernels_to_bare": row["kernels"] / bare} if "kernels" in row else {}
    return found


def _ways(model: HierMemModel, ids: Tensor, rows: int) -> dict[str, Callable[[], Read]]:
    one, many = ids.unsqueeze(0), ids.unsqueeze(0).expand(rows, -1)
    budget, chunk = model.config.working.budget, model.config.chunk
    ways: dict[str, Callable[[], Read]] = {
        "backbone": lambda: bare_reader(model, one, budget, chunk),
        "hiermem": lambda: _reader(model, one),
        f"backbone, {rows} rows": lambda: bare_reader(model, many, budget, chunk),
        f"hiermem, {rows} rows": lambda: _reader(model, many),
    }
    if model.device.type == "cuda":
        ways["backbone, graph"] = lambda: _captured(bare_reader(model, one, budget, chunk), chunk)
        ways["hiermem, compiled"] = lambda: _reader(_compiled(model), one)
        ways["hiermem, graphs"] = lambda: _reader(_compiled(model, mode="reduce-overhead"), one)
    return ways


def _compiled(model: HierMemModel, **options: Any) -> HierMemModel:
    twin = deepcopy(model)
    twin.compile(**options)
    return twin


def _reader(model: HierMemModel, ids: Tensor) -> Read:
    """Reads chunks of ``ids [B, n]``, the first half of which it has read."""
    memory, chunk = model.new_recurrent_memory(len(ids)), model.config.chunk

    def read(at: int) -> None:
        for _ in model.reader.stream(memory, ids[:, at : at + chunk]):
            pass

    for at in range(0, ids.shape[1] // 2, chunk):
        read(at)
    return read


def _captured(read: Read, chunk: int) -> Read:
    """The same chunk again and again, as one CUDA graph."""
    read(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        read(0)
    return lambda _: graph.replay()


def _measured(model: HierMemModel, read: Read, ids: Tensor, rounds: int, rows: int) -> dict[str, Any]:
    chunk = model.config.chunk
    starts = [at * chunk for at in range(len(ids) // chunk)]
    for at in starts[:3]:  # in which kinds of chunks are compiled
        read(at)
    kernels = started_kernels(lambda: read(0), model.device)
    begin = now(model.device)
    for turn in range(rounds):
        read(starts[turn % len(starts)])
    seconds = now(model.device) - begin
    return {"tokens_per_second": rows * rounds * chunk / seconds, "kernels": kernels}
