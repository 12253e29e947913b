"""The optimizer step: in one process with plain torch, or on any number of them with DeepSpeed.

Both take a `TrainingObjective`, see the same samples in the same order, and end a step with the same
parameters.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.utils import clip_grad_norm_

from hiermem.errors import InputError, NonFiniteError
from hiermem.training.batches import Batch
from hiermem.training.checkpoints import damaged
from hiermem.training.distributed import all_reduce_sum, world
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.optimizer import OptimizerConfig, adamw, set_rates
from hiermem.training.parameters import trainable_parameters
from hiermem.training.retrieval_pairs import Queries
from hiermem.training.sentences import SentenceBatch
from hiermem.training.stored_passages import StoredPassages

TrainingBatch = Batch | Queries | SentenceBatch | StoredPassages
"""A rectangle of samples or of queries, or questions with their passages."""


class Engine(ABC):
    """Takes optimizer steps.

    Attributes:
        objective: the model and its loss.
        config: settings of a step.
        trained: number of parameters that change.
    """

    def __init__(self, objective: TrainingObjective, config: OptimizerConfig) -> None:
        self.objective, self.config = objective, config
        self.trained = sum(weight.numel() for weight in trainable_parameters(objective).values())

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.objective.model.device

    @abstractmethod
    def step(self, batches: Sequence[TrainingBatch], factor: float) -> tuple[float, float]:
        """Take an optimizer step.

        Args:
            batches: this process's share of the step.
            factor: share of the full learning rates.

        Returns:
            The mean loss over all processes, and the gradient's norm.

        Raises:
            NonFiniteError: a loss is NaN or infinite; no parameter has changed.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write trainable parameters and optimizer into the folder ``path``."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            InputError: it cannot be read.
        """

    @abstractmethod
    def gathered(self) -> AbstractContextManager[Any]:
        """Within it, every process holds whole what is saved: all but the backbone's own parameters."""

    @abstractmethod
    def losses(self, batch: TrainingBatch) -> Losses:
        """Losses of a batch, without a step."""


def new_engine(objective: TrainingObjective, config: OptimizerConfig, deepspeed: Path | None) -> Engine:
    """DeepSpeed where its configuration is given, else one process with plain torch."""
    return (
        TorchEngine(objective, config) if deepspeed is None else DeepSpeedEngine(objective, config, deepspeed)
    )


class TorchEngine(Engine):
    """One process."""

    def __init__(self, objective: TrainingObjective, config: OptimizerConfig) -> None:
        if world() > 1:
            raise InputError("Several processes train with DeepSpeed: give its configuration to --deepspeed.")
        super().__init__(objective, config)
        self.optimizer = adamw(objective, config)

    def losses(self, batch: TrainingBatch) -> Losses:
        return self.objective(batch)

    def step(self, batches: Sequence[TrainingBatch], factor: float) -> tuple[float, float]:
        total = 0.0
        for batch in batches:
            losses = self.objective(batch)
            check_finite(losses, batch)
            (losses.total / len(batches)).backward()
            total += float(losses.total.detach()) / len(batches)
        norm = float(clip_grad_norm_(trainable_parameters(self.objective).values(), self.config.clip))
        set_rates(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm

    def gathered(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, path: Path) -> None:
        weights = trainable_parameters(self.objective)
        save_file(
            {name: weight.detach().contiguous() for name, weight in weights.items()},
            path / "weights.safetensors",
        )
        moments = {
            f"{name}/{kind}": tensor
            for name, weight in weights.items()
            for kind, tensor in self.optimizer.state[weight].items()
        }
        save_file(moments, path / "optimizer.safetensors")

    def load(self, path: Path) -> None:
        weights = trainable_parameters(self.objective)
        try:
            saved, moments = (
                load_file(path / "weights.safetensors"),
                load_file(path / "optimizer.safetensors"),
            )
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(saved[name])
            for name, weight in weights.items():
                kinds = [key.rpartition("/")[2] for key in moments if key.startswith(f"{name}/")]
                state = {kind: moments[f"{name}/{kind}"] for kind in kinds}
                self.optimizer.state[weight] = {
                    kind: tensor if kind == "step" else tensor.to(weight.device)  # AdamW counts on the CPU
                    for kind, tensor in state.items()
                }
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise damaged(path, error) from error


class DeepSpeedEngine(Engine):
    """Any number of processes, ZeRO as its configuration says.

    Args:
        objective: the model and its loss.
        config: settings of a step.
        path: DeepSpeed's configuration; sizes of the batch and clipping come from ``config``.
    """

    def __init__(self, objective: TrainingObjective, config: OptimizerConfig, path: Path) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise InputError("--deepspeed needs DeepSpeed: install hiermem with the extra train.") from error
        if not distributed.is_initialized():
            raise InputError("DeepSpeed trains under its launcher: see docs/training.md.")
        super().__init__(objective, config)
        settings = _settings(path) | {
            "train_batch_size": config.batch,
            "train_micro_batch_size_per_gpu": config.micro,
            "gradient_accumulation_steps": config.rounds(world()),
            "gradient_clipping": config.clip,
        }
        self._deepspeed = deepspeed
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=objective, optimizer=adamw(objective, config), config=settings
        )

    def losses(self, batch: TrainingBatch) -> Losses:
        return self._engine(batch)

    def step(self, batches: Sequence[TrainingBatch], factor: float) -> tuple[float, float]:
        set_rates(self.optimizer, factor)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            losses = self._engine(batch)
            check_finite(losses, batch)
            self._engine.backward(losses.total)
            self._engine.step()
            total += losses.total.detach().float() / len(batches)
        return float(all_reduce_sum(total)) / world(), float(self._engine.get_global_grad_norm() or 0.0)

    def gathered(self) -> AbstractContextManager[Any]:
        if self._engine.zero_optimization_stage() < 3:
            return nullcontext()
        named = self.objective.named_parameters()
        saved = [weight for name, weight in named if weight.requires_grad or ".backbone." not in name]
        return self._deepspeed.zero.GatheredParameters(saved, modifier_rank=None)

    def save(self, path: Path) -> None:
        self._engine.save_checkpoint(str(path), tag="deepspeed", exclude_frozen_parameters=True)

    def load(self, path: Path) -> None:
        found, _ = self._engine.load_checkpoint(str(path), tag="deepspeed", load_module_strict=False)
        if found is None:
            raise InputError(f"The checkpoint {path} cannot be read by DeepSpeed: delete it.")


def _settings(path: Path) -> dict[str, Any]:
    """DeepSpeed's configuration with real numbers."""
    try:
        settings = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a configuration of DeepSpeed ({error}).") from error
    if '"auto"' in json.dumps(settings):
        raise InputError(
            f"{path} holds the value auto, which only transformers' Trainer fills in: give numbers."
        )
    return settings


def check_finite(losses: Losses, batch: TrainingBatch) -> None:
    """Stop all processes before a step on a loss that is not finite in one of them.

    Raises:
        NonFiniteError: it is so; document and segment are named in the process that has them.
    """
    if not all_reduce_sum((~losses.total.detach().isfinite()).float()).item():
        return
    broken = (~losses.nll.isfinite()).nonzero().tolist()
    where = [f"segment {segment} of {batch.names[row]}" for row, segment in broken[:1]]
    raise NonFiniteError(
        f"The loss is not finite in {where[0] if where else 'another process'}: lower the learning rate, or "
        f"compute in float32. Nothing was changed in this step."
    )
