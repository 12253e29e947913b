"""Evolution by CMA-ES: ask for candidates, evaluate them, tell their fitness, keep a checkpoint.

Fitness is maximised. The library underneath minimises, and this is the one place that turns the sign. What
ships is the mean of the distribution (NAMM, arXiv 2410.13166), never its luckiest sample.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hiermem.errors import InputError
from hiermem.settings import check_settings
from hiermem.training.checkpoints import begin, damaged, finish, newest, place, read_state, write_state

WORST = 0.0
"""Fitness of a candidate whose own is not finite."""

_FORMER = {"covariance": "full", "pressure": 0.0}
"""Settings of a stage in checkpoints of earlier versions, which had a choice here."""

Vector = np.ndarray
Fitness = Callable[[Sequence[Vector], int], tuple[np.ndarray, np.ndarray]]
"""From candidates and the generation's number to fitness and kept share, ``[candidates, prompts]``."""


@dataclass(frozen=True)
class StageConfig:
    """One stage of an evolution; each starts from the mean of the last.

    Attributes:
        name: name of the stage.
        tasks: names of the tasks that fitness is measured on.
        prompts: prompts of each task in every generation; all candidates get the same.
        generations: number of generations.
        population: candidates of a generation.
        sigma: first standard deviation.
    """

    name: str
    tasks: tuple[str, ...]
    prompts: int = 4
    generations: int = 50
    population: int = 16
    sigma: float = 0.2

    def __post_init__(self) -> None:
        check_settings(self)
        if min(self.prompts, self.generations) < 1 or self.population < 4 or not self.tasks:
            raise InputError(
                f"Stage {self.name} needs a task, a prompt, a generation and at least 4 candidates."
            )
        if not self.sigma > 0:
            raise InputError(f"Stage {self.name} needs a positive sigma.")


@dataclass(frozen=True)
class Generation:
    """Figures of one generation.

    Attributes:
        number: number of the generation, from 1 within the whole evolution.
        stage: name of its stage.
        best: fitness of the best candidate.
        mean: mean fitness of the candidates.
        mean_fitness: fitness of the distribution's mean before this generation.
        kept: share of the cache that the distribution's mean keeps.
        sigma: standard deviation after this generation.
        refused: candidates whose fitness was not finite.
        seconds: how long it took.
    """

    number: int
    stage: str
    best: float
    mean: float
    mean_fitness: float
    kept: float
    sigma: float
    refused: int
    seconds: float


class Evolution:
    """CMA-ES through the stages of a configuration, with a checkpoint after every generation.

    Args:
        start: mean of the first stage, ``[n]`` float64.
        stages: the stages in order.
        seed: seed of all candidates.
        folder: folder of the checkpoints; the newest complete one is gone on from.
        writes: whether this process keeps checkpoints (one of several that evolve together).

    Attributes:
        history: all generations so far.
        skipped: checkpoints that were passed over because they are not complete.
    """

    def __init__(
        self, start: Vector, stages: Sequence[StageConfig], seed: int, folder: Path, writes: bool = True
    ) -> None:
        self.stages, self.seed, self.folder, self.writes = tuple(stages), seed, folder, writes
        self.history: list[Generation] = []
        self.skipped: list[str] = []
        self._settings = {"stages": [asdict(stage) | _FORMER for stage in stages], "seed": seed}
        self._optimizer = self._new(0, start)
        self._resume()

    @property
    def mean(self) -> Vector:
        """The distribution's mean, ``[n]`` float64."""
        return np.array(self._optimizer.mean)

    @property
    def total(self) -> int:
        """Generations of all stages together."""
        return sum(stage.generations for stage in self.stages)

    @property
    def stage(self) -> StageConfig:
        """The stage of the next generation, or the last."""
        return self.stages[min(self._place(len(self.history))[0], len(self.stages) - 1)]

    def step(self, fitness: Fitness) -> Generation:
        """Evolve one generation.

        Args:
            fitness: measures candidates; called once, with the distribution's mean before the candidates.
        """
        start, done = time.perf_counter(), len(self.history)
        index, within = self._place(done)
        stage = self.stages[index]
        if within == 0 and done:
            self._optimizer = self._new(index, self.mean)
        candidates = [self._optimizer.ask() for _ in range(stage.population)]
        scores, kept = fitness([self.mean, *candidates], done)
        means = scores.mean(1)
        finite = np.isfinite(means)
        means = np.where(finite, means, WORST)
        # The library minimises, so it is told the negative.
        self._optimizer.tell([(x, -float(y)) for x, y in zip(candidates, means[1:], strict=True)])
        generation = Generation(
            number=done + 1,
            stage=stage.name,
            best=float(means[1:].max()),
            mean=float(means[1:].mean()),
            mean_fitness=float(means[0]),
            kept=float(kept[0].mean()),
            sigma=float(self._optimizer._sigma),
            refused=int((~finite).sum()),
            seconds=time.perf_counter() - start,
        )
        self.history.append(generation)
        if self.writes:
            self._keep()
        return generation

    def _place(self, done: int) -> tuple[int, int]:
        """Stage of generation ``done``, counted from 0, and how many of that stage came before it."""
        for index, stage in enumerate(self.stages):
            if done < stage.generations:
                return index, done
            done -= stage.generations
        return len(self.stages), 0

    def _new(self, index: int, mean: Vector) -> Any:
        try:
            from cmaes import CMA
        except ImportError as error:
            raise InputError("Evolution needs cmaes: install hiermem with the extra evolve.") from error
        stage = self.stages[index]
        return CMA(
            mean=np.array(mean, dtype=np.float64),
            sigma=stage.sigma,
            seed=self.seed + index,
            population_size=stage.population,
        )

    # ---- checkpoints

    def _keep(self) -> None:
        path = place(self.folder, "generation", len(self.history))
        begin(path)
        arrays, plain = _state(self._optimizer)
        save_file(arrays, path / "state.safetensors")
        write_state(path, self._settings, history=[asdict(g) for g in self.history], state=plain)
        finish(path)

    def _resume(self) -> None:
        path, self.skipped = newest(self.folder, "generation")
        if path is None:
            return
        saved = read_state(path, self._settings)
        try:
            arrays = load_file(path / "state.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise damaged(path, error) from error
        self.history = [Generation(**_renamed(generation)) for generation in saved["history"]]
        index = self._place(len(self.history) - 1)[0]
        self._optimizer = self._new(index, arrays["_mean"])
        _restore(self._optimizer, arrays, saved["state"])


def _state(optimizer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All attributes of an optimizer: arrays, and what is plain JSON; the random state among them.

    cmaes itself saves an optimizer by pickle alone, and without its random state.
    """
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any] = {}
    for name, value in vars(optimizer).items():
        if isinstance(value, np.random.RandomState):
            state = cast(tuple[Any, ...], value.get_state())
            arrays[name], plain[name] = state[1], [state[0], *state[2:]]
        elif isinstance(value, np.ndarray):
            arrays[name] = np.ascontiguousarray(value)
        else:
            plain[name] = value.item() if isinstance(value, np.generic) else value
    return arrays, plain


def _restore(optimizer: Any, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
    """Give an optimizer the attributes that `_state` took of another."""
    for name, before in list(vars(optimizer).items()):
        if isinstance(before, np.random.RandomState):
            kind, *rest = plain[name]
            before.set_state((kind, arrays[name], *rest))
        else:
            setattr(optimizer, name, arrays[name] if name in arrays else plain[name])


def _renamed(generation: dict[str, Any]) -> dict[str, Any]:
    """The fields of a generation in a checkpoint; the first releases called `mean_fitness` centre."""
    return {"mean_fitness" if name == "centre" else name: value for name, value in generation.items()}
