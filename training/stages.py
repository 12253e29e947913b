"""Stages of `equip`: each makes a model from that of the one before, and goes on where it was stopped."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.util import find_spec

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.tasks import pg19
from hiermem.loading import saved_model
from hiermem.memory.policies import LinearPolicy, NammPolicy
from hiermem.model import HierMemModel
from hiermem.text import encode
from hiermem.training.calibration import CalibrationConfig, calibrate, evened, fitting
from hiermem.training.config import EvolveConfig, TrainConfig
from hiermem.training.distributed import barrier, broadcast_from_rank0, rank
from hiermem.training.evolve import evolve
from hiermem.training.finetune import train
from hiermem.training.preparation import Run
from hiermem.training.validation import Figures

Judge = Callable[[HierMemModel], Figures]
"""Validation figures of a model."""


@dataclass(frozen=True)
class Stage(ABC):
    """One stage: its fields are its settings.

    Attributes:
        name: of the stage and of its folder.
        allowance: nats by which the mean of the validation figures may rise, for what else the stage brings.
    """

    name: str
    allowance: float = field(default=0.0, kw_only=True)

    @abstractmethod
    def make(self, run: Run, judge: Judge) -> str:
        """Make the model of this stage within ``run.output``, or go on with that.

        Args:
            run: begins from ``run.model``.
            judge: where several are made, the best of them by this goes on.

        Returns:
            the folder of the model.
        """

    def check(self, processes: int) -> None:  # noqa: B027 - few need it
        """Refuse what it could not end on so many processes, before anything is done.

        Raises:
            InputError: so it is.
        """

    def work(self) -> Iterator[str]:
        """Lines that say what it will do."""
        yield self.name


@dataclass(frozen=True)
class Budgets(Stage):
    """Head shares and linear scores by calibration: the power that evens shares out and validates best, or no
    shares; then the policy `linear`, or the one that there was.

    Attributes:
        calibration: how they are measured; its power is not used.
        powers: those that are tried.
    """

    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    powers: tuple[float, ...] = (0.4, 0.75, 1.0)

    def make(self, run: Run, judge: Judge) -> str:
        model = loaded(run)
        plain = fitting(model.reader, replace(self.calibration, power=1.0))
        (book,) = pg19.books(run.data / "pg19", "train", None, 1).values()
        measured = broadcast_from_rank0(calibrate(model.reader, encode(model.tokenizer, book), plain))
        found: dict[float | None, float] = {None: judge(model).mean}
        for power in self.powers:
            _share(model, evened(measured.shares, power))
            found[power] = judge(model).mean
        best = min(found, key=lambda power: found[power])
        _share(model, None if best is None else evened(measured.shares, best))
        before = model.config.working
        model.scorer.take(measured.linear)
        model.config.working = before.with_policy(LinearPolicy.name)
        if judge(model).mean > found[best]:
            model.config.working = before
        return saved(model, run)

    def work(self) -> Iterator[str]:
        tokens = 2 * self.calibration.tokens * self.calibration.texts
        yield f"{self.name}: {tokens:,} tokens read, {len(self.powers) + 2} validations"


@dataclass(frozen=True)
class Training(Stage):
    """Gradient trainings one after the other, each of the model of the one before.

    Attributes:
        trainings: configurations by the names of their folders.
    """

    trainings: tuple[tuple[str, TrainConfig], ...]

    def check(self, processes: int) -> None:
        for _, config in self.trainings:
            config.optimizer.rounds(processes)

    def make(self, run: Run, judge: Judge) -> str:
        folder = run.model
        for name, config in self.trainings:
            train(config, replace(run, model=folder, output=run.output / name))
            folder = str(run.output / name)
        return folder

    def work(self) -> Iterator[str]:
        for name, config in self.trainings:
            tokens = config.steps * config.optimizer.batch * config.samples.tokens
            fitted = f", {config.fitted} samples fitted" if config.fitted else ""
            yield f"{self.name}, {name}: {config.steps} steps, {tokens:,} tokens trained{fitted}"


@dataclass(frozen=True)
class Evolution(Stage):
    """Head shares and NAMM's network by evolution, in the place of what the model keeps tokens by.

    Attributes:
        evolution: its configuration.
    """

    evolution: EvolveConfig

    def check(self, processes: int) -> None:
        if find_spec("cmaes") is None:
            raise InputError("Evolution needs the extra evolve: install it, or skip the stage evolution.")

    def make(self, run: Run, judge: Judge) -> str:
        model, folder = loaded(run), run.output / "evictor"
        evolve(model, run.data, self.evolution, folder)
        changed = model.config.with_working(policy=NammPolicy.name, head_shares=None)
        config = HierMemConfig(**changed.settings() | {"evictor": str(folder)})
        return saved(loaded(run, config), run)

    def work(self) -> Iterator[str]:
        for stage in self.evolution.stages:
            prompts = stage.prompts * len(stage.tasks)
            yield (
                f"{self.name}, {stage.name}: {stage.generations} generations of {stage.population} "
                f"candidates, {prompts} prompts of {self.evolution.length:,} tokens each"
            )


def loaded(run: Run, config: HierMemConfig | None = None) -> HierMemModel:
    """The model that a stage begins from: as it was saved, or a backbone as `full` configures it, without
    what ships for it."""
    if config is None and saved_model(run.model) is None:
        config = HierMemConfig.preset("full").without_shipped()
    return HierMemModel.from_pretrained(run.model, config=config, dtype=run.dtype, device=run.device).eval()


def _share(model: HierMemModel, shares: list[list[float]] | None) -> None:
    model.config.working = replace(model.config.working, head_shares=shares)


def saved(model: HierMemModel, run: Run) -> str:
    """The folder within ``run.output`` of a model, which the first process writes there."""
    folder = run.output / "model"
    if rank() == 0:
        model.save_pretrained(folder)
    barrier()
    return str(folder)
