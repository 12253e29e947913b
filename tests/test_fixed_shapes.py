"""The chunk step under torch.compile: one graph, and none anew once the cache is full."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from readers import ids_of, lively, reader, settings, uneven
from torch import Tensor
from torch.fx import GraphModule

from hiermem.config import HierMemConfig
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.model import HierMemModel

SEGMENT, SEGMENTS = 16, 12
FULL = 5
"""Segments after which the cache is full; what comes before is compiled in the plain tier alone, for time."""

EMBEDDINGS = {"summary": SummaryConfig(tokens=2, sensory=3, width=8, last=2)}
HEADS = {"mamba": MambaConfig(groups=[[0, 1]], taps=3, window=6, sinks=2)}
TIERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no gaps": {"policy": "window", "positions": "compact"},
    "head shares": {"head_shares": True},
    "namm": {"policy": "lively"},
    "memory embeddings": EMBEDDINGS,
    "Mamba heads": HEADS,
    "everything": {"head_shares": True, **EMBEDDINGS, **HEADS},
}


def model_of(tier: str) -> HierMemModel:
    """A tiny model with a tier, whose frame moves with every segment once it has read four."""
    own = dict(TIERS[tier])
    working = {name: own.pop(name) for name in ("head_shares", "policy", "positions") if name in own}
    if working.get("head_shares"):
        working["head_shares"] = uneven(reader())
    parts = settings(chunk=SEGMENT, segment=SEGMENT, **working).settings() | own
    model = reader(config=HierMemConfig(**parts))
    return lively(model) if "summary" in own else model


@pytest.mark.parametrize("tier", TIERS)
@torch.no_grad()
def test_a_full_cache_is_read_by_one_graph(tier: str) -> None:
    model, parts = model_of(tier), ids_of(SEGMENT * SEGMENTS).split(SEGMENT, dim=1)
    plain = model.new_recurrent_memory()
    expected = [model.read_ids(plain, part) for part in parts]
    graphs: list[GraphModule] = []

    def counted(graph: GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    model.adapter.compile(backend=counted)  # a break of the graph is an error
    memory = model.new_recurrent_memory()
    for number, (part, states) in enumerate(zip(parts, expected, strict=True)):
        with torch.compiler.set_stance("default" if number >= FULL or tier == "plain" else "force_eager"):
            found = model.read_ids(memory, part)
        torch.testing.assert_close(found, states, atol=1e-5, rtol=1e-4)
        if number == FULL:
            compiled = len(graphs)
    model.read_ids(memory, ids_of(SEGMENT // 2))
    model.read_ids(plain, ids_of(SEGMENT // 2))
    assert compiled, "nothing was compiled"
    assert compiled == len(graphs), "a chunk was compiled after the cache was full"
    assert memory.num_tokens == plain.num_tokens and memory.frames.starts() == plain.frames.starts()


@torch.no_grad()
def test_a_copy_of_a_compiled_model_computes_with_its_own_parameters() -> None:
    model, ids = model_of("plain"), ids_of(SEGMENT)
    torch.compiler.reset()
    model.adapter.compile(backend="eager")
    assert model.read_ids(model.new_recurrent_memory(), ids).any()
    twin = deepcopy(model)
    for weight in twin.backbone.parameters():
        weight.zero_()
    assert twin.adapter.compiled and not twin.read_ids(twin.new_recurrent_memory(), ids).any()
    assert model.read_ids(model.new_recurrent_memory(), ids).any()
