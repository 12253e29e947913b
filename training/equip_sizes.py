"""Sizes of `equip`: what its stages do, from minutes to days."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.settings import check_settings
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.cma_es import StageConfig
from hiermem.training.config import EvolveConfig, TrainConfig
from hiermem.training.facts import KINDS
from hiermem.training.recipes import CARRIED_MEMORY, carried, heads, together
from hiermem.training.samples import SampleConfig
from hiermem.training.stages import Budgets, Evolution, Stage, Training
from hiermem.training.validation import ValidationConfig

LIGHTER = 0.02
"""Nats that Mamba heads may cost, a third of whose cache they save."""


@dataclass(frozen=True)
class EquipConfig:
    """Settings of `equip`.

    Attributes:
        stages: in their order.
        validation: what they are judged by.
    """

    stages: tuple[Stage, ...]
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        check_settings(self)


def tiny() -> EquipConfig:
    """A few steps of every stage, to see that everything works: minutes."""
    stages = _stages(tokens=1024, batch=2, micro=1, memory=2, replaced=2, together_steps=2, fitted=4)
    measured = CalibrationConfig(tokens=512, texts=1)
    budgets = Budgets("budgets", measured, powers=(0.75,))
    evolved = replace(_evolution(generations=2, population=4, prompts=1, length=600), calibration=measured)
    evolution = Evolution("evolution", evolved)
    validation = ValidationConfig(pieces=1, tokens=2048, codes=2, length=600)
    return EquipConfig((budgets, evolution, *stages), validation)


def small() -> EquipConfig:
    """Hours on two cores, for a backbone of some hundred million parameters."""
    stages = _stages(tokens=2048, batch=2, micro=1, memory=30, replaced=30, together_steps=30, fitted=30)
    evolution = Evolution("evolution", _evolution(generations=30, population=16, prompts=2, length=2000))
    return EquipConfig((Budgets("budgets"), evolution, *stages), ValidationConfig(pieces=4, codes=16))


def full() -> EquipConfig:
    """Days on eight GPUs, under DeepSpeed's launcher."""
    stages = _stages(
        tokens=8192, batch=64, micro=4, memory=1000, replaced=1000, together_steps=1000, fitted=300
    )
    evolution = Evolution("evolution", _evolution(generations=300, population=32, prompts=32, length=4000))
    validation = ValidationConfig(pieces=32, tokens=16_384, codes=96, length=4000)
    return EquipConfig((Budgets("budgets"), evolution, *stages), validation)


SIZES: dict[str, Callable[[], EquipConfig]] = {"tiny": tiny, "small": small, "full": full}


def _stages(
    *, tokens: int, batch: int, micro: int, memory: int, replaced: int, together_steps: int, fitted: int
) -> tuple[Stage, ...]:
    """The trained memory, and Mamba heads around it, trained together at the end.

    Args:
        tokens: of a sample.
        batch: samples of a step.
        micro: samples that a process computes at once.
        memory: steps of the memory.
        replaced: steps of Mamba heads, which imitate.
        together_steps: steps of both.
        fitted: samples that recall is fitted to.
    """

    def sized(config: TrainConfig, steps: int) -> TrainConfig:
        return replace(
            config,
            samples=replace(config.samples, tokens=tokens),
            optimizer=replace(config.optimizer, batch=batch, micro=micro),
            steps=steps,
            evaluate_every=max(steps, 1),
        )

    added = replace(carried(), goes_on=True, summary=CARRIED_MEMORY, fitted=fitted)
    facts = SampleConfig(books=0.75, facts=0.25, kinds=KINDS)
    added = replace(added, samples=facts)
    around = (
        ("imitating", sized(heads(), replaced)),
        ("together", sized(replace(together(), samples=facts), together_steps)),
    )
    return (
        Training("memory", (("carried", sized(added, memory)),)),
        Training("heads", around, allowance=LIGHTER),
    )


def _evolution(*, generations: int, population: int, prompts: int, length: int) -> EvolveConfig:
    """Head shares and the network that ships for `smollm2`, from books alone."""
    network = NammConfig(SpectrogramConfig(hop=256, decay=0.997), hidden=0, threshold=None)
    tasks = ("needles", "continuation")
    stage = StageConfig("books", tasks, prompts=prompts, generations=generations, population=population)
    return EvolveConfig((stage,), network, length=length, pool=max(2, 2 * prompts))
