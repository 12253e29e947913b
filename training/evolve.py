"""`hiermem evolve`: from a backbone and train data to an evictor, on one process or many.

Under a launcher that sets RANK and WORLD_SIZE, every process evaluates all candidates on its own share of a
generation's prompts. Their figures are added up, so all of them evolve the same distribution.
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
from hiermem.training.calibration import calibrate, fitting
from hiermem.training.checkpoints import run_lock
from hiermem.training.cma_es import Evolution, Generation, StageConfig, Vector
from hiermem.training.config import EvolveConfig
from hiermem.training.distributed import all_reduce_sum, barrier, rank, world
from hiermem.training.fitness import FitnessEvaluator, Genome, normalisation
from hiermem.training.log import log
from hiermem.training.prompts import FitnessPrompt, TrainTexts, prompt


def evolve(model: HierMemModel, data: Path, config: EvolveConfig, folder: Path) -> dict[str, Any]:
    """Evolve, or go on where an earlier run in ``folder`` stopped, and write the evictor there.

    Args:
        model: a backbone without Mamba heads.
        data: folder that holds `pg19` and `pubmedqa`.
        config: settings of the evolution.
        folder: folder of checkpoints, logs and the evictor.

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
    evaluator = FitnessEvaluator(model, genome, room=config.pool * 3)

    def fitness(candidates: Sequence[Vector], number: int) -> tuple[np.ndarray, np.ndarray]:
        prompts = _prompts_of(source, config, evolution.stage, number)
        return _scores(evaluator, candidates, prompts)

    first, done = rank() == 0, len(evolution.history)
    bar = tqdm(total=evolution.total, initial=done, desc="evolving", disable=None if first else True)
    with bar, run_lock(folder, writes=first), log(folder, writes=first) as note:
        while len(evolution.history) < evolution.total:
            generation = evolution.step(fitness)
            note(generation.number, asdict(generation))
            bar.update()
            bar.set_postfix_str(_postfix(generation))
            if first:
                _weights(genome, evolution, config).save(folder)
    if first:
        _plot(evolution.history, folder / "fitness.png")
    last = evolution.history[-1]
    result = {"generation": last.number, "fitness": last.mean_fitness, "kept": last.kept}
    history = [asdict(generation) for generation in evolution.history]
    return {**result, "checkpoint": str(folder), "skipped": evolution.skipped, "history": history}


def _start(
    model: HierMemModel, source: TrainTexts, config: EvolveConfig, folder: Path
) -> tuple[Genome, Vector]:
    """Calibrated head shares and averaged attention as score; kept in ``folder`` for the next time."""
    place = folder / "start"
    if rank() == 0 and not (place / FILE).exists():
        _first_weights(model, source, config).save(place)
    barrier()
    saved = EvictionWeights.load(place)
    assert saved.shares is not None and saved.network is not None
    if asdict(saved.namm) != asdict(config.namm):
        raise InputError(f"{folder} is of an evolution of another network: give another --out.")
    network = Namm(config.namm)
    network.load_state_dict(saved.network)
    shape = len(saved.shares), len(saved.shares[0])
    genome = Genome(shape, config.namm, {"mean": network.mean, "deviation": network.deviation})
    return genome, genome.vector(saved.shares, network)


def _first_weights(model: HierMemModel, source: TrainTexts, config: EvolveConfig) -> EvictionWeights:
    """Calibrated head shares and averaged attention, with the normalisation of the texts' features."""
    book, calibration = source.encoded(source.books[0].text), fitting(model.reader, config.calibration)
    calibrated = calibrate(model.reader, book, calibration)
    tasks = dict.fromkeys(task for stage in config.stages for task in stage.tasks)
    texts = [prompt(source, task, 0, config.seed) for task in tasks]
    network = averaged_attention(config.namm)
    network.load_state_dict(normalisation(model, config.namm, texts), strict=False)
    origin: dict[str, object] = {"made_by": "hiermem evolve", "generation": 0}
    return EvictionWeights(calibrated.shares, network.state_dict(), config.namm, origin)


def averaged_attention(config: NammConfig) -> Namm:
    """A network whose score is the averaged strength of the attention that a token receives."""
    network = Namm(config)
    with torch.no_grad():
        network.score.weight[0, 2 * config.frequencies] = 1.0  # the lowest bin is the sum over a frame
    return network


def _prompts_of(
    source: TrainTexts, config: EvolveConfig, stage: StageConfig, number: int
) -> list[FitnessPrompt]:
    """The prompts of a generation: of each task the same number, drawn from its pool."""
    prompts = []
    for task in stage.tasks:
        rng = random.Random(f"{config.seed}/{number}/{task}")
        chosen = rng.sample(range(config.pool), min(stage.prompts, config.pool))
        prompts += [prompt(source, task, index, config.seed) for index in sorted(chosen)]
    return prompts


def _scores(
    evaluator: FitnessEvaluator, candidates: Sequence[Vector], prompts: Sequence[FitnessPrompt]
) -> tuple[np.ndarray, np.ndarray]:
    """Fitness and kept shares on all prompts, of which this process evaluates its share."""
    if world() == 1:
        return evaluator.scores(candidates, prompts)
    # Each process fills its columns; the sum over processes has them all.
    figures = torch.zeros(2, len(candidates), len(prompts), dtype=torch.float64)
    columns = list(range(rank(), len(prompts), world()))
    if columns:
        scores, kept = evaluator.scores(candidates, [prompts[column] for column in columns])
        figures[:, :, columns] = torch.from_numpy(np.stack((scores, kept)))
    figures = all_reduce_sum(figures)
    return figures[0].numpy(), figures[1].numpy()


def _weights(genome: Genome, evolution: Evolution, config: EvolveConfig) -> EvictionWeights:
    """Head shares and network of the distribution's mean, with where they come from."""
    mean, last = evolution.mean, evolution.history[-1]
    origin: dict[str, object] = {"made_by": "hiermem evolve", "generation": last.number, "seed": config.seed}
    origin |= {"stages": [asdict(stage) for stage in config.stages], "fitness": last.mean_fitness}
    return EvictionWeights(genome.shares(mean), genome.network(mean).state_dict(), config.namm, origin)


def _postfix(generation: Generation) -> str:
    """Figures of a generation behind the progress bar."""
    figures = f"{generation.stage}: best {generation.best:.3f}, mean {generation.mean:.3f}, "
    figures += f"mean_fitness {generation.mean_fitness:.3f}, kept {generation.kept:.3f}"
    return figures + (f", {generation.refused} not finite" if generation.refused else "")


def _plot(history: Sequence[Generation], path: Path) -> None:
    """Draw fitness over generations."""
    figure = new_figure()
    axes = figure.subplots()
    numbers = [generation.number for generation in history]
    for name in ("best", "mean", "mean_fitness", "kept"):
        axes.plot(numbers, [getattr(generation, name) for generation in history], label=name)
    axes.set(xlabel="generation", ylabel="likelihood relative to the full cache", ylim=(0, None))
    axes.legend()
    figure.savefig(path, dpi=120)
