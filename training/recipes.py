"""Named recipes of evolution: functions that return a whole configuration."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.evolution import StageConfig


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


def small() -> EvolveConfig:
    """What `smollm2` ships with: a weighted sum of the spectrogram and the age, and head shares."""
    namm = NammConfig(SpectrogramConfig(hop=128, decay=0.997), hidden=0, threshold=None)
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
    namm = NammConfig(SpectrogramConfig(hop=128, decay=0.997), hidden=0, threshold=None)
    return EvolveConfig(
        stages=(StageConfig("smoke", ("needles",), prompts=2, generations=3, population=4),),
        namm=namm,
        calibration=CalibrationConfig(tokens=512, texts=1),
        length=500,
        pool=2,
    )


RECIPES: dict[str, Callable[[], EvolveConfig]] = {"small": small, "published": published, "smoke": smoke}
