"""Kernels that reading would start on a GPU, counted on the processor; and what would wait for one."""

import pytest
import torch
from readers import ids_of
from test_fixed_shapes import FULL, SEGMENT, TIERS, model_of

from hiermem.eval.kernels import OperatorCalls, started_kernels


def test_views_and_empty_tensors_start_no_kernel() -> None:
    tensor = torch.arange(6.0)

    def run() -> None:
        matrix = tensor.view(2, 3).transpose(0, 1)[1:].unsqueeze(0)
        torch.empty(2, 2)
        (matrix * 2).sum()

    assert started_kernels(run, tensor.device) == 2


@pytest.mark.parametrize(
    ("waits", "run"),
    [
        (1, lambda tensor: tensor.sum().item()),
        (1, lambda tensor: bool((tensor > 2).all())),
        (1, lambda tensor: tensor[tensor > 2]),
        (0, lambda tensor: tensor[torch.tensor([1, 2])]),
        (0, lambda tensor: tensor.masked_fill(tensor > 2, 0.0)),
    ],
)
def test_waiting_is_seen(waits: int, run: object) -> None:
    with OperatorCalls() as calls:
        run(torch.arange(6.0))  # type: ignore[operator]
    assert calls.waits == waits


@pytest.mark.parametrize("tier", TIERS)
@torch.no_grad()
def test_a_whole_interval_over_a_full_cache_asks_for_no_number(tier: str) -> None:
    model = model_of(tier)
    model.adapter.compile(backend="eager")  # so that the cache keeps its shape; it is not used
    model.adapter._compiled_step = type(model.adapter).step
    memory = model.new_recurrent_memory()
    model.read_ids(memory, ids_of(SEGMENT * FULL))
    with OperatorCalls() as calls:
        for _ in model.reader.stream(memory, ids_of(SEGMENT)):
            pass
    assert calls.kernels > 100 and calls.waits == 0
