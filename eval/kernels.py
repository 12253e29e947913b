"""Kernels that a computation starts: counted by the profiler on a GPU, as calls of operators elsewhere."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

_MADE_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})

_WAITING = frozenset({"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "item"})
"""Operators whose result the processor waits for."""


class OperatorCalls(TorchDispatchMode):
    """Counts the calls of operators that would start a kernel on a GPU: all but views and empty tensors.

    Attributes:
        kernels: of such calls.
        waits: of calls after which the processor would wait for the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.waits = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in _MADE_EMPTY:
            self.kernels += 1
            self.waits += name in _WAITING or (name == "index" and _has_mask(args[1]))
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Any) -> bool:
    """Whether an index must be counted before it can be taken."""
    return any(index is not None and index.dtype == torch.bool for index in indices)


def started_kernels(run: Callable[[], object], device: torch.device) -> int:
    """How many kernels ``run`` starts; on the processor, calls that would start one."""
    if device.type != "cuda":
        with OperatorCalls() as calls:
            run()
        return calls.kernels
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize(device)
    launches = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
    return sum(event.count for event in found.key_averages() if event.key in (*launches, "cudaGraphLaunch"))
