"""Named recipes of evolution and of gradient training: functions that return a whole configuration."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.lora import LoraConfig
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.settings import check_settings
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.cma_es import StageConfig
from hiermem.training.distillation import ReplacementConfig
from hiermem.training.engine import OptimizerConfig
from hiermem.training.head_selection import ChoiceConfig
from hiermem.training.objective import ObjectiveConfig
from hiermem.training.retrieval_pairs import PairConfig
from hiermem.training.samples import SampleConfig


@dataclass(frozen=True)
class EvolveConfig:
    """A whole evolution of head shares and a network.

    Attributes:
        stages: in order.
        namm: the network that scores tokens.
        calibration: where the head shares start.
        length: tokens of a text.
        pool: prompts of each task; generations draw from them, so that texts are read once.
        seed: of prompts and candidates.
    """

    stages: tuple[StageConfig, ...]
    namm: NammConfig = field(default_factory=NammConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    length: int = 2000
    pool: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)


def small() -> EvolveConfig:
    """What `smollm2` ships with: a weighted sum of the spectrogram and the age, and head shares."""
    namm = NammConfig(SpectrogramConfig(hop=256, decay=0.997), hidden=0, threshold=None)
    return EvolveConfig(
        stages=(StageConfig("all", ("needles", "continuation", "abstracts"), prompts=2, generations=60),),
        namm=namm,
        pool=10,
    )


def published() -> EvolveConfig:
    """The published network and sizes (NAMM, arXiv 2410.13166) with our tasks; for a GPU and days."""
    first = StageConfig("first", ("needles",), prompts=64, generations=200, population=32, sigma=0.065)
    second = replace(first, name="second", tasks=("needles", "abstracts"))
    third = replace(first, name="third", tasks=("needles", "abstracts", "continuation"))
    return EvolveConfig(stages=(first, second, third), pool=256)


def smoke() -> EvolveConfig:
    """A few generations on a short text, to see that everything works: about two minutes on two cores."""
    namm = NammConfig(SpectrogramConfig(hop=256, decay=0.997), hidden=0, threshold=None)
    return EvolveConfig(
        stages=(StageConfig("smoke", ("needles",), prompts=2, generations=3, population=4),),
        namm=namm,
        calibration=CalibrationConfig(tokens=512, texts=1),
        length=500,
        pool=2,
    )


EVOLUTIONS: dict[str, Callable[[], EvolveConfig]] = {"small": small, "published": published, "smoke": smoke}


MEMORY = SummaryConfig(
    tokens=8, sensory=32, width=192, query="half", init_text="\nAbout the text.\nKeywords:"
)
"""A residual memory as it is trained for `smollm2`."""


@dataclass(frozen=True)
class TrainConfig:
    """A whole gradient training.

    Attributes:
        preset: configuration of the model, but for what follows.
        segment: tokens of a segment, read as one chunk; None takes the preset's.
        summary: settings of the memory embeddings; None takes those of the preset.
        lora: settings of the adapters.
        samples: what is trained on.
        objective: what is minimised.
        pairs: what the search key is taught with, in place of samples and objective; None: it is not.
        replacement: which heads Mamba heads replace and learn to imitate, in place of the objective; None:
            they are what they are.
        choice: how many of the Mamba heads stay; None: all.
        optimizer: how.
        steps: optimizer steps; 0 where there is something to fit or to choose and nothing to train.
        warmup: first steps, in which the learning rates rise from 0.
        floor: share of the learning rates that is left at the end, after a cosine.
        trains: parts of the memory that change, as `hiermem.training.engine.declare` names them.
        fitted: samples that the recall attention of a residual memory is first fitted to; 0: it stays as it
            is. A model that was trained before is fitted again only where its prompt does not change.
        evaluated: held-out samples (`held_out`) or queries that are read every `evaluate_every` steps.
        save_every: steps between two checkpoints.
    """

    preset: str = "full"
    segment: int | None = None
    summary: SummaryConfig | None = None
    lora: LoraConfig = field(default_factory=LoraConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    pairs: PairConfig | None = None
    replacement: ReplacementConfig | None = None
    choice: ChoiceConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 200
    warmup: int = 10
    floor: float = 0.1
    trains: tuple[str, ...] = ("prompt", "recall", "lora")
    fitted: int = 0
    evaluated: int = 8
    evaluate_every: int = 50
    save_every: int = 25

    def __post_init__(self) -> None:
        check_settings(self)
        counts = (self.evaluated, self.evaluate_every, self.save_every)
        least = 0 if self.fitted or self.choice else 1
        if min(counts) < 1 or self.warmup < 0 or self.steps < least:
            raise InputError("Steps and what is counted in them must be at least 1.")
        summary = self.model().summary
        if self.fitted and not (summary.tokens and summary.residual and self.fitted > 1):
            raise InputError(
                f"Recall can be fitted where the memory is residual, to at least 2 samples, not "
                f"{self.fitted}."
            )

    @property
    def declared(self) -> tuple[str, ...]:
        """What `hiermem.training.engine.declare` is to let change."""
        residual = self.model().summary.residual
        return (
            (*self.trains, "keys")
            if residual and "recall" in self.trains and not self.fitted
            else self.trains
        )

    @property
    def keeps_settings(self) -> bool:
        """Whether a model that was trained before keeps its settings (preset, segment and summary are then
        ignored): the prompts that it reads with are not trained here."""
        return "prompt" not in self.trains

    def model(self) -> HierMemConfig:
        """The configuration of the model that is trained."""
        config = HierMemConfig.preset(self.preset)
        changes: dict[str, Any] = {} if self.summary is None else {"summary": self.summary}
        if self.segment is not None:
            working = replace(config.working, update_interval=self.segment)
            changes |= {"segment": self.segment, "chunk": self.segment, "working": working}
        return HierMemConfig(**{**config.settings(), **changes})

    @property
    def held_out(self) -> SampleConfig:
        """Pieces of books as long as those that are trained on; without books, samples of the same kinds."""
        samples = self.samples
        return replace(samples, books=1.0, questions=0.0, facts=0.0) if samples.books else samples

    def factor(self, step: int) -> float:
        """What the learning rates are multiplied by."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        through = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * through)) / 2

    def with_share(self, share: float | None) -> "TrainConfig":
        """The same training with another share of heads that are replaced, or stay so, if one is given.

        Raises:
            InputError: nothing is replaced or chosen.
        """
        if share is None:
            return self
        if self.replacement is not None:
            return replace(self, replacement=replace(self.replacement, share=share))
        if self.choice is not None:
            return replace(self, choice=replace(self.choice, share=share))
        raise InputError(
            "A share is of the heads that the recipes heads and heads-chosen replace: leave --share out."
        )

    def with_batch(self, batch: int | None, micro: int | None) -> "TrainConfig":
        """The same training with other sizes of a step, where they are given.

        Args:
            batch: samples of a step, over all processes.
            micro: samples that a process computes at once.

        Raises:
            InputError: the one is no multiple of the other, or nothing is trained.
        """
        if not self.steps and (batch is not None or micro is not None):
            raise InputError("This recipe fits or chooses and trains nothing: leave --batch and --micro out.")
        given = {name: size for name, size in (("batch", batch), ("micro", micro)) if size is not None}
        return replace(self, optimizer=replace(self.optimizer, **given))

    def with_steps(self, steps: int | None) -> "TrainConfig":
        """The same training with another number of steps, if one is given.

        Raises:
            InputError: nothing is trained.
        """
        if steps is not None and not self.steps:
            raise InputError("This recipe fits or chooses and trains nothing: leave --steps out.")
        return self if steps is None else replace(self, steps=steps)


def hmt_first() -> TrainConfig:
    """HMT's first stage (arXiv 2405.06067, section 4): no recall beyond the segment before, two segments."""
    summary = replace(HierMemConfig.preset("hmt").summary, last=1)
    return TrainConfig(
        preset="hmt",
        summary=summary,
        lora=LoraConfig(rank=8),
        samples=SampleConfig(tokens=2048),
        objective=ObjectiveConfig(depth=1, recompute=True),
        optimizer=OptimizerConfig(batch=8, micro=1),
        steps=200,
    )


def hmt_second() -> TrainConfig:
    """HMT's second stage: recall over the last 300 segments, gradients through as many as memory allows."""
    first = hmt_first()
    return replace(
        first,
        summary=None,
        samples=SampleConfig(tokens=8192),
        objective=ObjectiveConfig(depth=7, recompute=True),
        optimizer=OptimizerConfig(batch=16, micro=1),
        steps=500,
    )


def isolated() -> TrainConfig:
    """The prompt that segments of 512 tokens are read with, over no cache: with 32 sensory tokens and what is
    recalled, all that a segment knows of those before."""
    return TrainConfig(
        preset="hmt",
        segment=512,
        summary=MEMORY,
        samples=SampleConfig(tokens=2048),
        objective=ObjectiveConfig(depth=0),
        optimizer=OptimizerConfig(memory_rate=2e-3, batch=1, micro=1),
        steps=100,
        fitted=30,
        evaluated=8,
        evaluate_every=20,
        save_every=5,
    )


def recall() -> TrainConfig:
    """Recall fitted to what segments leave now that their prompt is trained: goes on from `isolated`.

    Gradient steps with the prompt held fixed made it worse (docs/lab-notes.md).
    """
    return replace(isolated(), trains=("recall",), fitted=60, steps=0)


def carried() -> TrainConfig:
    """The prompt around segments whose keys and values are carried on: goes on from `isolated`."""
    return replace(
        isolated(),
        preset="full",
        summary=replace(MEMORY, sensory=0, query="previous"),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=1, micro=1),
        steps=60,
    )


def questions() -> TrainConfig:
    """Adapters that answer PubMedQA's questions from an abstract, with a decision or at length."""
    return TrainConfig(
        lora=LoraConfig(rank=8),
        samples=SampleConfig(books=0.0, questions=1.0, tokens=640),
        objective=ObjectiveConfig(whole=True),
        optimizer=OptimizerConfig(lora_rate=4e-4, batch=4, micro=4),
        trains=("lora",),
        steps=200,
        evaluated=64,
        evaluate_every=20,
    )


def smoke_training() -> TrainConfig:
    """A few steps on short pieces, to see that everything works: under two minutes on two cores."""
    return TrainConfig(
        summary=SummaryConfig(tokens=4),
        lora=LoraConfig(rank=4),
        samples=SampleConfig(books=0.5, questions=0.5, tokens=1024, held_out=1),
        optimizer=OptimizerConfig(batch=2, micro=1),
        steps=3,
        warmup=2,
        evaluated=1,
        evaluate_every=3,
        save_every=2,
    )


def search_key() -> TrainConfig:
    """The trained part of the search key, last of all: nothing else depends on it."""
    return TrainConfig(
        summary=SummaryConfig(tokens=3, search=256),
        pairs=PairConfig(),
        trains=("search",),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=16, micro=16),
        steps=200,
        evaluated=100,
        evaluate_every=25,
    )


def heads() -> TrainConfig:
    """Mamba heads in the place of a third of the KV groups, each taught to imitate what it replaces."""
    return TrainConfig(
        samples=SampleConfig(books=0.75, facts=0.25, tokens=2048),
        replacement=ReplacementConfig(),
        trains=("mamba",),
        optimizer=OptimizerConfig(memory_rate=1e-2, batch=1, micro=1),
        steps=200,
        evaluated=3,
        evaluate_every=50,
    )


def heads_together() -> TrainConfig:
    """The same heads in their places, taught by the backbone's predictions: goes on from `heads`."""
    return replace(
        heads(),
        replacement=None,
        objective=ObjectiveConfig(language=0.0, teacher=1.0, depth=3, whole=True),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=1, micro=1),
        steps=100,
        evaluate_every=25,
        save_every=10,
    )


def heads_chosen() -> TrainConfig:
    """Of the heads that `heads` taught, the third of all that changes predictions least; trains nothing."""
    return replace(heads_together(), choice=ChoiceConfig(), steps=0)


def heads_language() -> TrainConfig:
    """The same heads, taught by language modelling: goes on from `heads-logits`."""
    together = heads_together()
    return replace(together, objective=replace(together.objective, language=1.0, teacher=0.0))


TRAININGS: dict[str, Callable[[], TrainConfig]] = {
    "hmt-1": hmt_first,
    "hmt-2": hmt_second,
    "isolated": isolated,
    "recall": recall,
    "carried": carried,
    "questions": questions,
    "heads": heads,
    "heads-chosen": heads_chosen,
    "heads-logits": heads_together,
    "heads-language": heads_language,
    "key": search_key,
    "smoke": smoke_training,
}
