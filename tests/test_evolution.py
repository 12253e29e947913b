"""Evolution: the loop, its checkpoints, the fitness, and two processes that agree with one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from readers import lively_namm, reader, settings, text_of, uneven

from hiermem.eviction_weights import EvictionWeights
from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.model import HierMemModel
from hiermem.training import checkpoints
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.cma_es import Evolution, StageConfig, Vector
from hiermem.training.config import EvolveConfig
from hiermem.training.evolve import averaged_attention, evolve
from hiermem.training.fitness import FitnessEvaluator, Genome, relative_likelihood
from hiermem.training.prompts import FitnessPrompt
from hiermem.training.recipes import EVOLUTIONS

# ---- the loop

TARGET = np.linspace(-1, 1, 6)


def closeness(candidates: Sequence[Vector], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest at `TARGET`; measured on two prompts that differ with the generation."""
    distance = np.array([np.square(candidate - TARGET).sum() for candidate in candidates])
    scores = np.stack((np.exp(-distance), np.exp(-distance) * (1 + number % 2)), axis=1)
    return scores, np.full_like(scores, 0.25)


def stages(generations: int = 4) -> tuple[StageConfig, ...]:
    first = StageConfig("one", ("a",), generations=generations, population=8, sigma=0.5)
    return first, replace(first, name="two", sigma=0.2)


def run(folder: Path, until: int, **changes: object) -> Evolution:
    evolution = Evolution(np.zeros(6), changes.get("stages", stages()), 3, folder)  # type: ignore[arg-type]
    while len(evolution.history) < until:
        evolution.step(closeness)
    return evolution


def test_the_mean_finds_what_fits(tmp_path: Path) -> None:
    evolution = run(tmp_path, 80, stages=stages(40))
    assert np.abs(evolution.mean - TARGET).max() < 0.05
    assert evolution.history[-1].mean_fitness > 0.95 > evolution.history[0].mean_fitness
    assert [g.number for g in evolution.history] == list(range(1, 81))
    assert {g.stage for g in evolution.history} == {"one", "two"}


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_stopped_evolution_ends_as_one_that_was_not(tmp_path: Path, stop: int) -> None:
    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "parts", stop)
    resumed = run(tmp_path / "parts", 8)
    assert np.array_equal(resumed.mean, whole.mean)
    assert [replace(g, seconds=0.0) for g in resumed.history] == [
        replace(g, seconds=0.0) for g in whole.history
    ]


@pytest.mark.parametrize("moment", range(3))
def test_a_kill_while_a_checkpoint_is_written_costs_one_generation_at_most(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, 3)
    calls = iter(range(100))

    def dies(path: Path) -> None:
        if next(calls) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "sync", dies)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 4)
    monkeypatch.undo()
    again = Evolution(np.zeros(6), stages(), 3, tmp_path)
    complete = moment == 2  # the last thing that is synced is the folder with its marker
    assert len(again.history) == 3 + complete
    assert again.skipped == ([] if complete else ["generation-00004"])


def test_an_incomplete_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    run(tmp_path, 3)
    (tmp_path / "generation-00009").mkdir()
    again = Evolution(np.zeros(6), stages(), 3, tmp_path)
    assert again.skipped == ["generation-00009"] and len(again.history) == 3


def test_other_settings_and_damage_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 2)
    with pytest.raises(ValueError, match="other settings"):
        Evolution(np.zeros(6), stages(), 4, tmp_path)
    (tmp_path / "generation-00002" / "state.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Evolution(np.zeros(6), stages(), 3, tmp_path)


def test_what_is_not_finite_is_worth_nothing_and_is_reported(tmp_path: Path) -> None:
    def broken(candidates: Sequence[Vector], number: int) -> tuple[np.ndarray, np.ndarray]:
        scores, kept = closeness(candidates, number)
        scores[2, 1], scores[3] = np.nan, np.inf
        return scores, kept

    generation = Evolution(np.zeros(6), stages(), 3, tmp_path).step(broken)
    assert generation.refused == 2
    assert np.isfinite([generation.best, generation.mean, generation.mean_fitness]).all()


@pytest.mark.parametrize("bad", [{"generations": 0}, {"population": 3}, {"sigma": 0.0}, {"tasks": ()}])
def test_bad_stages_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Stage"):
        StageConfig(**{"name": "s", "tasks": ("a",), **bad})  # type: ignore[arg-type]


def test_relative_likelihood_is_smooth_and_says_what_is_unknown() -> None:
    assert relative_likelihood(2.0, 2.0) == 1.0
    assert relative_likelihood(3.0, 2.0) == pytest.approx(np.exp(-1))
    assert np.isnan(relative_likelihood(float("nan"), 1.0)) and np.isnan(
        relative_likelihood(1.0, float("nan"))
    )


# ---- the fitness


def tiny() -> HierMemModel:
    return reader(config=settings(8, 48, policy="namm"), dtype=torch.float64)


def genome(model: HierMemModel, hidden: int = 4) -> Genome:
    namm = NammConfig(SpectrogramConfig(8, 4, 0.9), hidden=hidden, threshold=None)
    bins = namm.spectrogram.bins
    return Genome((3, 2), namm, {"mean": torch.full((bins,), 0.1), "deviation": torch.full((bins,), 0.5)})


def prompts_of(model: HierMemModel, keep: float) -> list[FitnessPrompt]:
    ids = model.tokenizer(text_of(60)).input_ids
    return [FitnessPrompt(f"a/{n}", ids[n : n + 50], ids[n + 50 : n + 58], 5, keep) for n in range(3)]


def vectors(model: HierMemModel, count: int) -> list[Vector]:
    made = genome(model)
    start = made.vector(uneven(model), averaged_attention(made.namm))
    draw = np.random.default_rng(0)
    return [start + draw.normal(scale=0.3, size=start.size) for _ in range(count)]


def test_a_vector_stands_for_shares_and_network() -> None:
    model = tiny()
    made, network = genome(model), lively_namm(4, None)
    again = Genome((3, 2), network.config, {"mean": network.mean, "deviation": network.deviation})
    vector = again.vector(uneven(model), network)
    assert np.allclose(again.shares(vector), np.array(uneven(model)) / 2)
    for name, tensor in again.network(vector).state_dict().items():
        torch.testing.assert_close(tensor, network.state_dict()[name])
    assert torch.equal(made.network(vectors(model, 1)[0]).deviation, made.buffers["deviation"])


def test_with_everything_kept_a_candidate_is_the_backbone() -> None:
    model = tiny()
    even = [np.concatenate((np.zeros(6), vector[6:])) for vector in vectors(model, 2)]
    scores, kept = FitnessEvaluator(model, genome(model)).scores(even, prompts_of(model, 1.0))
    assert np.allclose(scores, 1.0, atol=1e-9) and np.allclose(kept, 1.0)


def test_a_candidate_scores_as_the_model_it_makes() -> None:
    model = tiny()
    vector, prompts = vectors(model, 1)[0], prompts_of(model, 0.5)
    scores, kept = FitnessEvaluator(model, genome(model)).scores([vector], prompts)
    model.namm = genome(model).network(vector)
    for column, prompt in enumerate(prompts):
        nll = {}
        for name, changes in (("none", {}), ("namm", {"head_shares": genome(model).shares(vector)})):
            config = replace(model.config.working, policy=name, budget=25, update_interval=64, **changes)
            memory = model.new_working_memory(config)
            model.read_ids(memory, torch.tensor([prompt.text]))
            memory.evict()
            with torch.no_grad():
                model.adapter.read_chunk(memory, torch.tensor([prompt.rest[:2]]), [2])
                logits = model.adapter.read_chunk(memory, torch.tensor([prompt.rest[2:-1]]), [5], logits=5)
            nll[name] = float(
                torch.nn.functional.cross_entropy(logits[0].float(), torch.tensor(prompt.rest[3:]))
            )
        assert scores[0, column] == pytest.approx(np.exp(nll["none"] - nll["namm"]), rel=1e-5)
        assert kept[0, column] <= 0.5
    assert scores.min() != scores.max()


def test_candidates_do_not_depend_on_each_other() -> None:
    model, prompts = tiny(), prompts_of(tiny(), 0.5)
    together = FitnessEvaluator(model, genome(model)).scores(vectors(model, 3), prompts)[0]
    small = FitnessEvaluator(model, genome(model), room=1)  # forgets texts and reads them again
    alone = [small.scores([vector], prompts[::-1])[0][0, ::-1] for vector in vectors(model, 3)]
    assert np.array_equal(together, np.array(alone))


# ---- whole runs


def data(folder: Path) -> Path:
    (folder / "pg19" / "train").mkdir(parents=True)
    for book in range(2):
        (folder / "pg19" / "train" / f"{book}.txt").write_text(text_of(900, seed=book), "utf-8")
    abstracts = {
        str(n): {
            "QUESTION": f"what of {n}?",
            "CONTEXTS": [text_of(9, seed=n)],
            "LONG_ANSWER": "a cat sailed north",
            "final_decision": "yes",
        }
        for n in range(12)
    }
    (folder / "pubmedqa").mkdir()
    (folder / "pubmedqa" / "ori_pqal.json").write_text(json.dumps(abstracts))
    (folder / "pubmedqa" / "test_ground_truth.json").write_text(json.dumps({"0": "yes"}))
    return folder


def config(generations: int = 3) -> EvolveConfig:
    stage = StageConfig(
        "all", ("needles", "continuation", "abstracts"), prompts=1, generations=generations, population=4
    )
    namm = NammConfig(SpectrogramConfig(8, 8, 0.9), hidden=0, threshold=None)
    calibration = CalibrationConfig(tokens=64, texts=1, kept=0.3)
    return EvolveConfig((stage,), namm, calibration, length=120, pool=2, seed=5)


def wide() -> HierMemModel:
    """A tiny model whose range has room for the texts."""
    model = reader(config=settings(16, 48, policy="namm"))
    model.adapter.trained_range = 1024
    return model


def test_a_run_that_was_killed_makes_the_same_evictor(tmp_path: Path) -> None:
    folder = data(tmp_path)
    whole = evolve(wide(), folder, config(), tmp_path / "whole")
    first = evolve(wide(), folder, config(1), tmp_path / "parts")
    assert first["generation"] == 1
    checkpoint = tmp_path / "parts" / "generation-00001" / "state.json"
    saved = json.loads(checkpoint.read_text())
    former = {"covariance": "full", "pressure": 0.0}  # settings that earlier versions wrote
    saved["settings"]["stages"][0] |= {"generations": 3, **former}
    saved["history"][0]["centre"] = saved["history"][0].pop("mean_fitness")
    checkpoint.write_text(json.dumps(saved))
    parts = evolve(wide(), folder, config(), tmp_path / "parts")
    assert parts["generation"] == whole["generation"] == 3
    expected, resumed = EvictionWeights.load(tmp_path / "whole"), EvictionWeights.load(tmp_path / "parts")
    assert expected.digest == resumed.digest != EvictionWeights.load(tmp_path / "whole" / "start").digest
    assert (tmp_path / "whole" / "fitness.png").stat().st_size > 1000
    assert len((tmp_path / "parts" / "history.jsonl").read_text().splitlines()) == 3


def test_another_network_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    folder = data(tmp_path)
    evolve(wide(), folder, config(1), tmp_path / "run")
    with pytest.raises(ValueError, match="another network"):
        evolve(wide(), folder, replace(config(1), namm=NammConfig()), tmp_path / "run")


def test_every_recipe_is_whole() -> None:
    for name, recipe in EVOLUTIONS.items():
        assert recipe().stages, name
    assert EVOLUTIONS["published-network"]().namm == NammConfig()


def test_two_processes_evolve_what_one_does(tmp_path: Path) -> None:
    folder = data(tmp_path)
    one = evolve(wide(), folder, config(2), tmp_path / "one")
    script = (
        "import sys; from pathlib import Path; from test_evolution import config, wide; "
        "from hiermem.training.evolve import evolve; from hiermem.training.distributed import one_of_many\n"
        "with one_of_many(): evolve(wide(), Path(sys.argv[1]), config(2), Path(sys.argv[2]))"
    )
    (tmp_path / "run.py").write_text(script)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*start, str(tmp_path / "run.py"), str(folder), str(tmp_path / "two")], env=environment, check=True
    )
    assert EvictionWeights.load(tmp_path / "one").digest == EvictionWeights.load(tmp_path / "two").digest
    assert one["generation"] == 2
