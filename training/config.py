"""Configurations of an evolution and of a gradient training."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.lora import LoraConfig
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.kv.prompt import KVPromptConfig
from hiermem.memory.policies import NammConfig
from hiermem.memory.state_encoder import StateEncoderConfig
from hiermem.retrieval.keys import DenseKey, StatesKey
from hiermem.settings import check_settings
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.cma_es import StageConfig
from hiermem.training.distillation import ReplacementConfig
from hiermem.training.head_selection import ChoiceConfig
from hiermem.training.objective import ObjectiveConfig
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.retrieval_pairs import PairConfig
from hiermem.training.samples import SampleConfig
from hiermem.training.sentences import SentenceConfig
from hiermem.training.stored_passages import PassageConfig


@dataclass(frozen=True)
class EvolveConfig:
    """Settings of an evolution of head shares and NAMM's network.

    Attributes:
        stages: the stages in order.
        namm: the network that scores tokens.
        calibration: how the head shares of the first generation are measured.
        length: tokens of a text.
        pool: prompts of each task; generations draw from them, so that texts are read once.
        seed: seed of prompts and candidates.
    """

    stages: tuple[StageConfig, ...]
    namm: NammConfig = field(default_factory=NammConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    length: int = 2000
    pool: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a gradient training.

    Attributes:
        preset: preset of the model's configuration, which the next two change.
        segment: tokens of a segment, read as one chunk; None: the preset's.
        summary: settings of the memory embeddings; None: the preset's.
        lora: settings of the adapters.
        samples: the training data.
        objective: the loss.
        pairs: queries and texts that the search key is trained with, in place of samples and objective; None:
            it is not trained.
        passages: questions whose passages are recalled as keys and values, which the prompt in front of these
            is trained with, in place of samples and objective; None: it is not trained.
        sentences: sentences that the encoder of the backbone's states is taught with, in place of samples and
            objective; None: it is not trained.
        replacement: heads that Mamba heads replace and learn to imitate, in place of the objective; None: no
            others than the model has.
        choice: how many of the Mamba heads stay; None: all.
        optimizer: settings of the optimizer step.
        steps: optimizer steps; 0 where something is fitted or chosen and nothing is trained.
        warmup: first steps, in which the learning rates rise from 0.
        floor: share of the learning rates that is left at the end, after a cosine.
        goes_on: whether it begins from a saved model with all settings of that, to which `summary` is added
            where it is given.
        trains: parts of the memory that change, by the names of `hiermem.training.parameters.part_prefixes`.
        fitted: samples that the recall attention of a residual memory is fitted to first; 0: it stays as it
            is. A model that was trained before is fitted again only where its prompt does not change.
        evaluated: held-out samples (`held_out`) or queries of an evaluation.
        evaluate_every: steps between two evaluations.
        save_every: steps between two checkpoints.
    """

    preset: str = "full"
    segment: int | None = None
    summary: SummaryConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pairs: PairConfig | None = None
    passages: PassageConfig | None = None
    sentences: SentenceConfig | None = None
    replacement: ReplacementConfig | None = None
    choice: ChoiceConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 200
    warmup: int = 10
    floor: float = 0.1
    goes_on: bool = False
    trains: tuple[str, ...] = ("prompt", "recall", "lora")
    fitted: int = 0
    evaluated: int = 8
    evaluate_every: int = 50
    save_every: int = 25

    def __post_init__(self) -> None:
        check_settings(self)
        counts = (self.evaluated, self.evaluate_every, self.save_every)
        fewest = 0 if self.fitted or self.choice else 1
        if min(counts) < 1 or self.warmup < 0 or self.steps < fewest:
            raise InputError("Steps and what is counted in them must be at least 1.")
        summary = self.model().summary
        if self.fitted and not (summary.tokens and summary.residual and self.fitted > 1):
            raise InputError(
                f"Recall can be fitted where the memory is residual, to at least 2 samples, not "
                f"{self.fitted}."
            )
        if summary.tokens and not summary.last and (self.fitted or {"recall", "keys"} & {*self.trains}):
            raise InputError(
                "A memory that recalls nothing, with last=0, trains its prompt alone: leave recall and keys "
                "out of trains, and fitted at 0."
            )

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """The parts that change, keys of the recall attention included where they are not fitted."""
        fitted = self.fitted or not self.model().summary.residual
        return (*self.trains, "keys") if "recall" in self.trains and not fitted else self.trains

    @property
    def keeps_settings(self) -> bool:
        """Whether a model that was trained before keeps its settings.

        So it is where it goes on, or the prompts that it reads with are not trained; preset and segment are
        then ignored, and summary, too, but where it goes on.
        """
        return self.goes_on or "prompt" not in self.trains

    @property
    def adds_memory(self) -> bool:
        """Whether it adds memory embeddings to a saved model."""
        return self.goes_on and self.summary is not None

    def model(self) -> HierMemConfig:
        """The configuration of the model that is trained."""
        config = HierMemConfig.preset(self.preset).without_shipped()
        changes: dict[str, Any] = {} if self.summary is None else {"summary": self.summary}
        if self.passages is not None:  # it is begun anew, whatever ships
            changes["kv_prompt"] = KVPromptConfig(0)
        if self.sentences is not None:
            changes["state_encoder"] = StateEncoderConfig([])
            keys = {name: key for name, key in config.longterm.keys.items() if name != DenseKey.name}
            changes["longterm"] = replace(config.longterm, keys={**keys, StatesKey.name: {}})
        if self.segment is not None:
            working = replace(config.working, update_interval=self.segment)
            changes |= {"segment": self.segment, "chunk": self.segment, "working": working}
        return HierMemConfig(**{**config.settings(), **changes})

    @property
    def held_out(self) -> SampleConfig:
        """Validation samples: pieces of books of that length; without books, samples of the same kinds."""
        samples = self.samples
        return samples.of_kind("books") if samples.books else samples

    def factor(self, step: int) -> float:
        """The factor of the learning rates in a step: a linear warmup, then a cosine down to the floor."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2

    def changed(
        self,
        steps: int | None = None,
        batch: int | None = None,
        micro: int | None = None,
        share: float | None = None,
    ) -> "TrainConfig":
        """The same training with the options that are given in place of its own.

        Args:
            steps: optimizer steps.
            batch: samples of a step, over all processes.
            micro: samples that a process computes at once.
            share: share of the KV groups that are replaced, or stay so.

        Raises:
            InputError: the recipe has no use for an option, or sizes do not fit together.
        """
        sizes = {name: size for name, size in (("batch", batch), ("micro", micro)) if size is not None}
        if not self.steps and (sizes or steps is not None):
            raise InputError(
                "This recipe fits or chooses and trains nothing: leave --steps, --batch and --micro out."
            )
        changes: dict[str, Any] = {} if steps is None else {"steps": steps}
        if sizes:
            changes["optimizer"] = replace(self.optimizer, **sizes)
        if share is not None:
            part = "choice" if self.replacement is None else "replacement"
            if (heads := self.replacement or self.choice) is None:
                raise InputError(
                    "A share is of the heads that the recipes heads and heads-chosen replace: leave --share "
                    "out."
                )
            changes[part] = replace(heads, share=share)
        return replace(self, **changes)
