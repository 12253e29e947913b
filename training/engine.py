"""The optimizer step: in one process with plain torch, or on any number of them with DeepSpeed.

Both take a `TrainingObjective`, see the same samples in the same order, and end a step with the same
parameters.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.nn.utils import clip_grad_norm_

from hiermem.errors import InputError, NonFiniteError
from hiermem.model import HierMemModel
from hiermem.settings import check_settings
from hiermem.training.checkpoints import damaged
from hiermem.training.distributed import all_reduce_sum, world
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.retrieval_pairs import Queries
from hiermem.training.samples import Batch

Drawn = Batch | Queries
"""What a step takes."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW and of a step.

    Attributes:
        memory_rate: learning rate of the memory parameters.
        lora_rate: learning rate of the adapters.
        weight_decay: of all of them.
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
        """How often each of ``world`` processes computes in a step."""
        if self.batch % (self.micro * world):
            raise InputError(
                f"A batch of {self.batch} samples does not divide into {world} processes that compute "
                f"{self.micro} at once: start another number of them, or change --batch or --micro."
            )
        return self.batch // (self.micro * world)


def declared(learner: TrainingObjective) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: weight for name, weight in learner.named_parameters() if weight.requires_grad}


def declare(model: HierMemModel, trains: Sequence[str]) -> None:
    """Let only those ask for gradients.

    Args:
        trains: which parts: `prompt`, what segments are read with (P_0, and T where all is trained as
            published); `recall`, what is recalled (W_c and W_v of a residual memory, whose keys are fitted,
            else W_q and W_k); `keys`, W_q and W_k of a residual memory that is not fitted; `search`, T, which
            with the query `previous` summarises nothing but questions; `mamba`, the Mamba heads; `lora`, the
            adapters.
    """
    summary = model.config.summary
    summarises = ("summary.summary_prompt.",)
    published = summarises if summary.query == "half" and not summary.residual else ()
    parts = {
        "prompt": ("summary.first_prompt.", *published),
        "recall": ("summary.content.", "summary.value.")
        if summary.residual
        else ("summary.query.", "summary.key."),
        "keys": ("summary.query.", "summary.key.") if summary.query == "half" else ("summary.key.",),
        "search": summarises,
        "mamba": ("mamba.",),
    }
    chosen = tuple(name for part in trains if part != "lora" for name in parts[part])
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith(chosen) or (".lora_" in name and "lora" in trains))


def _groups(learner: TrainingObjective, config: OptimizerConfig) -> list[dict[str, Any]]:
    weights = declared(learner)
    memory = [weight for name, weight in weights.items() if ".lora_" not in name]
    lora = [weight for name, weight in weights.items() if ".lora_" in name]
    rated = ((memory, config.memory_rate), (lora, config.lora_rate))
    return [{"params": some, "lr": rate, "rate": rate} for some, rate in rated if some]


def _adamw(learner: TrainingObjective, config: OptimizerConfig) -> torch.optim.AdamW:
    groups = _groups(learner, config)
    if not groups:
        raise InputError("There is nothing to train: switch on memory embeddings or adapters.")
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


class Engine(ABC):
    """Takes optimizer steps.

    Attributes:
        learner: what is trained.
        config: settings of a step.
        trained: number of parameters that change.
    """

    def __init__(self, learner: TrainingObjective, config: OptimizerConfig) -> None:
        self.learner, self.config = learner, config
        self.trained = sum(weight.numel() for weight in declared(learner).values())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.learner.model.device

    @abstractmethod
    def step(self, batches: Sequence[Drawn], factor: float) -> tuple[float, float]:
        """One optimizer step on this process's batches; the mean loss over all, and the gradient's norm.

        Args:
            factor: what the learning rates are multiplied by.

        Raises:
            NonFiniteError: a loss is NaN or infinite; no parameter has changed.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write parameters and optimizer into ``path``."""

    @abstractmethod
    def load(self, path: Path) -> None:
        """The inverse of `save`."""

    @abstractmethod
    def gathered(self) -> AbstractContextManager[Any]:
        """Within it, every process holds whole what is saved: all but the backbone's own parameters."""

    @abstractmethod
    def losses(self, batch: Drawn) -> Losses:
        """Losses of a batch, without a step."""


def new_engine(learner: TrainingObjective, config: OptimizerConfig, deepspeed: Path | None) -> Engine:
    """DeepSpeed where its configuration is given, else one process with plain torch."""
    return TorchEngine(learner, config) if deepspeed is None else DeepSpeedEngine(learner, config, deepspeed)


class TorchEngine(Engine):
    """One process."""

    def __init__(self, learner: TrainingObjective, config: OptimizerConfig) -> None:
        if world() > 1:
            raise InputError("Several processes train with DeepSpeed: give its configuration to --deepspeed.")
        super().__init__(learner, config)
        self.optimizer = _adamw(learner, config)

    def losses(self, batch: Drawn) -> Losses:
        return self.learner(batch)

    def step(self, batches: Sequence[Drawn], factor: float) -> tuple[float, float]:
        total = 0.0
        for batch in batches:
            losses = self.learner(batch)
            check_finite(losses, batch)
            (losses.total / len(batches)).backward()
            total += float(losses.total.detach()) / len(batches)
        norm = float(clip_grad_norm_(declared(self.learner).values(), self.config.clip))
        _set_rates(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total, norm

    def gathered(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, path: Path) -> None:
        weights = declared(self.learner)
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
        weights = declared(self.learner)
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
                own = {kind: moments[f"{name}/{kind}"] for kind in kinds}
                self.optimizer.state[weight] = {
                    kind: tensor if kind == "step" else tensor.to(weight.device)  # AdamW counts on the CPU
                    for kind, tensor in own.items()
                }
        except torch.OutOfMemoryError:
            raise
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise damaged(path, error) from error


class DeepSpeedEngine(Engine):
    """Any number of processes, ZeRO as its configuration says.

    Args:
        path: DeepSpeed's configuration; sizes of the batch and clipping come from ``config``.
    """

    def __init__(self, learner: TrainingObjective, config: OptimizerConfig, path: Path) -> None:
        try:
            import deepspeed
        except ImportError as error:
            raise InputError("--deepspeed needs DeepSpeed: install hiermem with the extra train.") from error
        if not distributed.is_initialized():
            raise InputError("DeepSpeed trains under its launcher: see docs/training.md.")
        super().__init__(learner, config)
        settings = _settings(path) | {
            "train_batch_size": config.batch,
            "train_micro_batch_size_per_gpu": config.micro,
            "gradient_accumulation_steps": config.rounds(world()),
            "gradient_clipping": config.clip,
        }
        self._deepspeed = deepspeed
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=learner, optimizer=_adamw(learner, config), config=settings
        )

    def losses(self, batch: Drawn) -> Losses:
        return self._engine(batch)

    def step(self, batches: Sequence[Drawn], factor: float) -> tuple[float, float]:
        _set_rates(self.optimizer, factor)
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
        named = self.learner.named_parameters()
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


def _set_rates(optimizer: Any, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor


def check_finite(losses: Losses, batch: Drawn) -> None:
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
