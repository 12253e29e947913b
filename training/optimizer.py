"""AdamW with a learning rate for the memory and one for the adapters."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hiermem.errors import InputError
from hiermem.settings import check_settings
from hiermem.training.parameters import is_lora, trainable_parameters


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW and of a step.

    Attributes:
        memory_rate: learning rate of the memory parameters.
        lora_rate: learning rate of the adapters.
        weight_decay: weight decay of all of them.
        clip: largest norm of the gradient.
        batch: samples of a step, over all processes.
        micro: samples that a process computes at once.
    """

    memory_rate: float = 1e-3
    lora_rate: float = 2e-4
    weight_decay: float = 0.0
    clip: float = 1.0
    batch: int = 8
    micro: int = 2

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.memory_rate, self.lora_rate, self.clip) <= 0 or self.weight_decay < 0:
            raise InputError("Learning rates and the clip must be above 0, the weight decay not below it.")
        if min(self.batch, self.micro) < 1 or self.batch % self.micro:
            raise InputError(
                f"A batch must be a multiple of what is computed at once, not {self.batch} of {self.micro}: "
                f"change --batch or --micro."
            )

    def rounds(self, world: int) -> int:
        """How often each of ``world`` processes computes in a step.

        Raises:
            InputError: the batch does not divide so.
        """
        if self.batch % (self.micro * world):
            raise InputError(
                f"A batch of {self.batch} samples does not divide into {world} processes that compute "
                f"{self.micro} at once: start another number of them, or change --batch or --micro."
            )
        return self.batch // (self.micro * world)


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of a module's trainable parameters; each group keeps its full learning rate as `rate`.

    Raises:
        InputError: no parameter is trainable.
    """
    weights = trainable_parameters(module)
    memory = [weight for name, weight in weights.items() if not is_lora(name)]
    lora = [weight for name, weight in weights.items() if is_lora(name)]
    rates = ((memory, config.memory_rate), (lora, config.lora_rate))
    groups = [{"params": params, "lr": rate, "rate": rate} for params, rate in rates if params]
    if not groups:
        raise InputError("There is nothing to train: switch on memory embeddings or adapters.")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def set_rates(optimizer: Any, factor: float) -> None:
    """Set the learning rates to a share of what the configuration gives."""
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
