"""`hiermem evolve`: from a backbone and train data to an evictor, on one process or many.

Under a launcher that sets RANK and WORLD_SIZE, every process judges all candidates on its own share of a
generation's prompts; what they find is gathered, so all of them evolve the same distribution.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hiermem.errors import InputError
from hiermem.eval.plots import new_figure
from hiermem.eviction_weights import FILE, EvictionWeights
from hiermem.memory.policies import Namm, NammConfig
from hiermem.model import HierMemModel
from hiermem.training.calibration import calibrate
from hiermem.training.checkpoints import run_lock
from hiermem.training.cma_es import Evolution, Generation, Vector
from hiermem.training.distributed import all_reduce_sum, barrier, rank, world
from hiermem.training.fitness import FitnessEvaluator, Genome, normalisation
from hiermem.training.log import log
from hiermem.training.prompts import FitnessPrompt, TrainTexts, prompt
from hiermem.training.recipes import EvolveConfig


def evolve(model: HierMemModel, data: Path, config: EvolveConfig, folder: Path) -> dict[str, Any]:
    """Evolve, or go on where an earlier run in ``folder`` stopped, and write the evictor there.

    Returns:
        generation, fitness of the distribution's mean, kept share, checkpoint and history.

    Raises:
        InputError: the data are missing, ``folder`` is of an evolution with other settings, or heads are
            replaced.
    """
    from tqdm.auto import tqdm

    if model.mamba.groups:
        raise InputError(
            "What a cache keeps is evolved on the backbone with all its heads: give one without Mamba heads; "
            "they may be added later."
        )
    source = TrainTexts(model.tokenizer, data, model.config.asking.instruction, config.length)
    genome, start = _start(model, source, config, folder)
    evolution = Evolution(start, config.stages, config.seed, folder, writes=rank() == 0)
    judge = FitnessEvaluator(model, genome, room=config.pool * 3)

    def fitness(candidates: Sequence[Vector], number: int) -> tuple[np.ndarray, np.ndarray]:
        return _gathered(judge, candidates, _drawn(source, config, evolution, number))

    bar = tqdm(
        total=evolution.total,
        initial=len(evolution.history),
        desc="evolving",
        disable=True if rank() else None,
    )
    with bar, run_lock(folder, writes=rank() == 0), log(folder, writes=rank() == 0) as note:
        while len(evolution.history) < evolution.total:
            generation = evolution.step(fitness)
            note(generation.number, asdict(generation))
            bar.update()
            bar.set_postfix_str(_words(generation))
            if rank() == 0:
                _evictor(genome, evolution, config).save(folder)
    if rank() == 0:
        _plot(evolution.history, folder / "fitness.png")
    last = evolution.history[-1]
    return {
        "generation": last.number,
        "fitness": last.mean_fitness,
        "kept": last.kept,
        "checkpoint": str(folder),
        "skipped": evolution.skipped,
        "history": [asdict(generation) for generation in evolution.history],
    }


def _start(
    model: HierMemModel, source: TrainTexts, config: EvolveConfig, folder: Path
) -> tuple[Genome, Vector]:
    """Calibrated head shares and averaged attention as score; kept in ``folder`` for the next time."""
    where = folder / "start"
    if rank() == 0 and not (where / FILE).exists():
        _first_evictor(model, source, config).save(where)
    barrier()
    saved = EvictionWeights.load(where)
    assert saved.shares is not None and saved.network is not None
    if asdict(saved.namm) != asdict(config.namm):
        raise InputError(f"{folder} is of an evolution of another network: give another --out.")
    network = Namm(config.namm)
    network.load_state_dict(saved.network)
    shape = len(saved.shares), len(saved.shares[0])
    genome = Genome(shape, config.namm, {"mean": network.mean, "deviation": network.deviation})
    return genome, genome.vector(saved.shares, network)


def _first_evictor(model: HierMemModel, source: TrainTexts, config: EvolveConfig) -> EvictionWeights:
    shares = calibrate(model.reader, source.encoded(source.books[0].text), config.calibration)
    tasks = dict.fromkeys(task for stage in config.stages for task in stage.tasks)
    texts = [prompt(source, task, 0, config.seed) for task in tasks]
    network = averaged_attention(config.namm)
    network.load_state_dict(normalisation(model, config.namm, texts), strict=False)
    return EvictionWeights(
        shares, network.state_dict(), config.namm, {"made_by": "hiermem evolve", "generation": 0}
    )


def averaged_attention(config: NammConfig) -> Namm:
    """A network whose score is the averaged strength of the attention that a token receives."""
    network = Namm(config)
    with torch.no_grad():
        network.score.weight[0, 2 * config.frequencies] = 1.0  # the lowest bin is the sum over a frame
    return network


def _drawn(
    source: TrainTexts, config: EvolveConfig, evolution: Evolution, number: int
) -> list[FitnessPrompt]:
    """The prompts of a generation: of each task the same number, drawn from its pool."""
    stage, prompts = evolution.stage, []
    for task in stage.tasks:
        rng = random.Random(f"{config.seed}/{number}/{task}")
        chosen = rng.sample(range(config.pool), min(stage.prompts, config.pool))
        prompts += [prompt(source, task, one, config.seed) for one in sorted(chosen)]
    return prompts


def _gathered(
    judge: FitnessEvaluator, candidates: Sequence[Vector], prompts: Sequence[FitnessPrompt]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all prompts, of which this process judges its share."""
    if world() == 1:
        return judge.scores(candidates, prompts)
    both = torch.zeros(2, len(candidates), len(prompts), dtype=torch.float64)
    own = list(range(rank(), len(prompts), world()))
    if own:
        scores, kept = judge.scores(candidates, [prompts[i] for i in own])
        both[:, :, own] = torch.from_numpy(np.stack((scores, kept)))
    both = all_reduce_sum(both)
    return both[0].numpy(), both[1].numpy()


def _evictor(genome: Genome, evolution: Evolution, config: EvolveConfig) -> EvictionWeights:
    mean, last = evolution.mean, evolution.history[-1]
    origin: dict[str, object] = {"made_by": "hiermem evolve", "generation": last.number, "seed": config.seed}
    origin |= {"stages": [asdict(stage) for stage in config.stages], "fitness": last.mean_fitness}
    return EvictionWeights(genome.shares(mean), genome.network(mean).state_dict(), config.namm, origin)


def _words(generation: Generation) -> str:
    words = f"{generation.stage}: best {generation.best:.3f}, mean {generation.mean:.3f}, "
    words += f"mean_fitness {generation.mean_fitness:.3f}, kept {generation.kept:.3f}"
    return words + (f", {generation.refused} not finite" if generation.refused else "")


def _plot(history: Sequence[Generation], path: Path) -> None:
    """Fitness over generations."""
    figure = new_figure()
    axes = figure.subplots()
    numbers = [generation.number for generation in history]
    for name in ("best", "mean", "mean_fitness", "kept"):
        axes.plot(numbers, [getattr(generation, name) for generation in history], label=name)
    axes.set(xlabel="generation", ylabel="likelihood relative to the full cache", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)
