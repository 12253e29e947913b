"""The cost of the memory: reading a text against the bare backbone on the same chunks, in one run.

The bare limit is transformers' own model body (no logits) on the same chunks over an untouched cache of
`budget` tokens that is cropped back after each chunk: same dtype, same threads.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hiermem.cache import cache_argument
from hiermem.config import HierMemConfig
from hiermem.model import HierMemModel
from hiermem.resources import now


def bare_reader(model: HierMemModel, ids: Tensor, budget: int, chunk: int) -> Callable[[int], object]:
    """Reads the chunk of ``ids [1, n]`` at a place with the backbone's body alone, over ``budget`` tokens."""
    cache = DynamicCache(config=model.backbone.config)
    body = model.backbone.base_model
    over = {cache_argument(body): cache, "use_cache": True}
    body(input_ids=ids[:, :budget], **over)

    def read(at: int) -> None:
        body(input_ids=ids[:, at : at + chunk], **over)
        cache.crop(-chunk)

    return read


def _memory_reader(model: HierMemModel, ids: Tensor, config: HierMemConfig) -> Callable[[int], object]:
    reader, chunk = replace(model.reader, chunk=config.chunk), config.chunk
    memory = reader.new_working_memory(config.working, recurrent=True)

    def read(at: int) -> None:
        for _ in reader.stream(memory, ids[:, at : at + chunk]):
            pass

    settled = min(memory.trained_range, ids.shape[1] // 2)  # from there on positions move as well
    for at in range(0, settled, chunk):
        read(at)
    return read


def measure(
    model: HierMemModel, ids: Tensor, configs: dict[str, HierMemConfig], rounds: int
) -> list[dict[str, Any]]:
    """Interleaved timings of one chunk at a time; rows with mean speed and the ratio to the bare limit.

    Means, not medians: keys are turned to new positions in some chunks only.

    Args:
        ids: ``[1, n]`` int64, at least a few chunks.
        configs: configurations of the same chunk and budget, by name.
        rounds: chunks timed for each system.
    """
    first = next(iter(configs.values()))
    chunk, budget = first.chunk, first.working.budget
    ids = ids.to(model.device)
    with torch.inference_mode():
        readers = {"bare limit": bare_reader(model, ids, budget, chunk)}
        readers |= {name: _memory_reader(model, ids, config) for name, config in configs.items()}
        times: dict[str, list[float]] = {name: [] for name in readers}
        for turn in range(rounds + 1):
            at = (turn * chunk) % (ids.shape[1] - chunk)
            for name, reader in readers.items():
                start = now(model.device)
                reader(at)
                if turn:  # the first round warms up
                    times[name].append(now(model.device) - start)
    means = {name: sum(values) / rounds for name, values in times.items()}
    return [
        {
            "system": name,
            "chunk": chunk,
            "budget": budget,
            "tokens_per_second": chunk / mean,
            "ratio_to_bare": means["bare limit"] / mean,
            "rounds": rounds,
        }
        for name, mean in means.items()
    ]
