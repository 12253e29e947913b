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

    A program of your own that does so ends best by `hiermem.ending.end`, as hiermem's commands do.

    Args:
        always: also where it was started as the only one.
    """
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
    """Go on when all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def broadcast_from_rank0(value: Any) -> Any:
    """The first process's ``value``, in all of them."""
    if world() == 1:
        return value
    given = [value]
    distributed.broadcast_object_list(given)
    return given[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum of all processes' ``values``, where they are; NCCL adds on GPUs only."""
    if not distributed.is_initialized():
        return values
    total = values.to("cuda") if distributed.get_backend() == "nccl" else values.clone()
    distributed.all_reduce(total)
    return total.to(values.device)
