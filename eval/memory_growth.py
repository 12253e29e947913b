"""Whether reading stays flat: speed and resident memory along a long document."""

from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from hiermem.model import HierMemModel
from hiermem.resources import now, used_bytes
from hiermem.retrieval.files import saved_bytes


def measure(model: HierMemModel, ids: Tensor, settle: int) -> dict[str, Any]:
    """Read ``ids [n]`` int64 as a document, in tenths.

    Returns speed of each tenth, by what share memory in use grew after the first ``settle`` tokens, and how
    many bytes the saved memory takes on the disk.
    """
    memory = model.new_memory()
    chunk = model.config.chunk
    bounds = [round(len(ids) * tenth / 10 / chunk) * chunk for tenth in range(10)] + [len(ids)]
    speeds, settled, peak = [], 0, 0
    for begin, end in pairwise(bounds):
        start = now(model.device)
        for at in range(begin, end, 4 * chunk):
            model.read(ids[at : min(at + 4 * chunk, end)], memory, progress=False)
            if memory.tokens <= settle or not settled:
                settled = max(settled, used_bytes(model.device))
            peak = max(peak, used_bytes(model.device))
        speeds.append((end - begin) / (now(model.device) - start))
    with TemporaryDirectory() as folder:
        memory.save(folder)
        on_disk = saved_bytes(folder)
    return {
        "tokens": memory.tokens,
        "tokens_per_second_by_tenth": speeds,
        "last_tenth_to_second": speeds[-1] / speeds[1],
        "settled_bytes": settled,
        "peak_bytes": peak,
        "growth": peak / settled - 1,
        "saved_bytes": on_disk,
        "live_tokens_max": memory.working.frames.counts.peak_tokens,
    }
