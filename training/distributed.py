"""One process of many: torch.distributed where a launcher asks for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed

from hiermem.ending import end_at_once


@contextmanager
def one_of_many(always: bool = False) -> Iterator[bool]:
    """Join the processes that a launcher (torchrun, deepspeed) has started; whether this is the first.

    Within another such block nothing is joined or left.

    A program of your own that does so should end by `hiermem.ending.end`, as hiermem's commands do.

    Args:
        always: join also where the launcher has started this process alone.
    """
    if distributed.is_initialized():
        yield rank() == 0
        return
    started = "WORLD_SIZE" in os.environ
    if not started or (int(os.environ["WORLD_SIZE"]) < 2 and not always):
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    end_at_once()
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank() == 0
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes have come here."""
    if distributed.is_initialized():
        distributed.barrier()


def broadcast_from_rank0(value: Any) -> Any:
    """The first process's ``value``, in all processes."""
    if world() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' ``values``, on their device."""
    if not distributed.is_initialized():
        return values
    # NCCL adds on GPUs only.
    total = values.to("cuda") if distributed.get_backend() == "nccl" else values.clone()
    distributed.all_reduce(total)
    return total.to(values.device)
