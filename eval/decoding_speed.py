"""Speed of decoding after texts of several lengths, beside the backbone with full attention, in one run."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from hiermem.cache import cache_argument
from hiermem.greedy import DraftedRow, in_step
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.resources import now

DRAFTS, SINGLE, BACKBONE = "hiermem", "hiermem, one token a pass", "backbone"

Decode = Callable[[int], list[int]]
"""Decodes so many tokens after what was read."""

System = Callable[[Tensor], Callable[[], Decode]]
"""Reads ``[1, n]`` int64 but for the last token; then makes a copy of that ready whenever it is called."""


@dataclass
class _Row:
    """Takes tokens up to a number, whatever they are."""

    wanted: int
    tokens: list[int] = field(default_factory=list)

    @property
    def going(self) -> bool:
        return len(self.tokens) < self.wanted

    def add(self, token: int) -> None:
        self.tokens.append(token)


def measure(
    model: HierMemModel,
    ids: Tensor,
    contexts: Sequence[int],
    tokens: int,
    repeats: int,
    others: Mapping[str, System],
) -> list[dict[str, Any]]:
    """Rows with the speed of each system after each context, which decode in turns.

    Args:
        ids: ``[n]`` int64, at least as many as the longest context.
        contexts: tokens that are read before.
        tokens: that are decoded, the likeliest ones.
        repeats: how often; the mean counts.
        others: systems beside ``model`` and its backbone, by name.
    """
    rows = []
    with torch.inference_mode():
        for context in contexts:
            read = ids[None, :context].to(model.device)
            systems = _systems(model, read) | {name: system(read) for name, system in others.items()}
            for ready in systems.values():
                ready()(2)  # warms up
            seconds: dict[str, float] = dict.fromkeys(systems, 0.0)
            for _ in range(repeats):
                for name, ready in systems.items():
                    decode = ready()
                    start = now(model.device)
                    decode(tokens)
                    seconds[name] += now(model.device) - start
            rows += [
                {"system": name, "context": context, "tokens_per_second": tokens * repeats / spent}
                for name, spent in seconds.items()
            ]
    return rows


def _systems(model: HierMemModel, ids: Tensor) -> dict[str, Callable[[], Decode]]:
    memory = _read(model, ids)
    drafted, single = partial(_drafted, model, ids, memory), partial(_single, model, ids, memory)
    return {DRAFTS: lambda: drafted, SINGLE: lambda: single, BACKBONE: _backbone(model, ids)}


def with_drafts(model: HierMemModel) -> System:
    """As a model decodes by default."""

    def system(ids: Tensor) -> Callable[[], Decode]:
        drafted = partial(_drafted, model, ids, _read(model, ids))
        return lambda: drafted

    return system


def _read(model: HierMemModel, ids: Tensor) -> WorkingMemory:
    memory = model.new_recurrent_memory()
    model.read_ids(memory, ids[:, :-1])
    return memory


def _drafted(model: HierMemModel, ids: Tensor, memory: WorkingMemory, tokens: int) -> list[int]:
    row = _Row(tokens)
    for _ in DraftedRow(model.reader, memory.copy(), ids, row, read=ids.shape[1] - 1).tokens():
        pass
    return row.tokens


def _single(model: HierMemModel, ids: Tensor, memory: WorkingMemory, tokens: int) -> list[int]:
    row = _Row(tokens)
    for _ in in_step(model.reader, memory.copy(), ids[:, -1:], [row]):
        pass
    return row.tokens


def _backbone(model: HierMemModel, ids: Tensor) -> Callable[[], Decode]:
    """transformers' own model with full attention, one token a pass."""
    backbone, chunk = model.backbone, model.config.chunk
    name, before = cache_argument(backbone), DynamicCache(config=backbone.config)
    for at in range(0, ids.shape[1] - 1, chunk):
        part = ids[:, at : min(at + chunk, ids.shape[1] - 1)]
        backbone.base_model(input_ids=part, **{name: before}, use_cache=True)

    def decode(cache: DynamicCache, tokens: int) -> list[int]:
        token, found = ids[:, -1:], []
        for _ in range(tokens):
            output = backbone(input_ids=token, **{name: cache}, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            found.append(int(token))
        return found

    return lambda: partial(decode, copy.deepcopy(before))
