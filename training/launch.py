"""One process of many: torch.distributed where a launcher asks for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def one_of_many(always: bool = False) -> Iterator[bool]:
    """Join the processes that a launcher (torchrun, deepspeed) has started; whether this is the first.

    Args:
        always: also where it was started as the only one.
    """
    started = "WORLD_SIZE" in os.environ
    if not started or (int(os.environ["WORLD_SIZE"]) < 2 and not always):
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield distributed.get_rank() == 0
    finally:
        distributed.destroy_process_group()
