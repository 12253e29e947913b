"""`hiermem equip`: stages that go on from one another, are judged, stopped and gone on with."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from commands import assert_refused, result, run
from safetensors.torch import load_file
from test_training import TESTS, launch, needs_deepspeed
from test_training import data as data  # the fixture
from trainings import stopped_in_step

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.model import HierMemModel
from hiermem.training import equip as equipping
from hiermem.training import equip_sizes
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.equip import LEDGER, equip
from hiermem.training.equip_sizes import EquipConfig
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.preparation import Run
from hiermem.training.recipes import TRAININGS
from hiermem.training.stages import Budgets, Evolution, Judge, Stage, Training, loaded
from hiermem.training.validation import ValidationConfig

VALIDATION = ValidationConfig(pieces=1, tokens=700, codes=2, length=600)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of a few seconds."""
    monkeypatch.setitem(equip_sizes.SIZES, "tiny", small_stages)


def small_stages() -> EquipConfig:
    """All stages of the size tiny, for a tiny model; Mamba heads stay, whatever they cost."""
    budgets, evolution, *trained = equip_sizes.tiny().stages
    assert isinstance(budgets, Budgets) and isinstance(evolution, Evolution)
    short = CalibrationConfig(tokens=256, texts=1)
    budgets = replace(budgets, calibration=short)
    evolution = replace(evolution, evolution=replace(evolution.evolution, calibration=short))
    stages = [replace(stage, allowance=10.0) for stage in (budgets, evolution, *trained)]
    return EquipConfig(tuple(stages), VALIDATION)


def run_of(model: Path, data: Path, out: Path, deepspeed: Path | None = None) -> Run:
    return Run(str(model), data, out, deepspeed, dtype="float32")


@dataclass(frozen=True)
class Spoiled(Stage):
    """A stage that makes the same model again; its figures are spoilt by `spoilt_figures`."""

    def make(self, run: Run, judge: Judge) -> str:
        model = loaded(run)
        model.save_pretrained(run.output)
        return str(run.output)


@contextmanager
def spoilt_figures(name: str) -> Iterator[None]:
    """Validation figures of the stage of this name are bad."""
    take = equipping._take

    def taken(stage: Stage, ledger: Any, run: Run, judge: Judge) -> None:
        def bad(model: HierMemModel) -> Any:
            return replace(judge(model), books=100.0)

        take(stage, ledger, run, bad if stage.name == name else judge)

    with patch.object(equipping, "_take", taken):
        yield


def test_every_stage_is_in_the_model_that_comes_out(wide_model: Path, data: Path, tmp_path: Path) -> None:
    found = result("equip", wide_model, "--data", data, "--out", tmp_path / "out", "--size", "tiny")
    assert [stage["name"] for stage in found["stages"]] == ["budgets", "evolution", "memory", "heads"]
    assert all(stage["kept"] and stage["seconds"] > 0 for stage in found["stages"])
    pairs = zip(found["stages"], found["stages"][1:], strict=False)
    assert all(first["after"] == second["before"] for first, second in pairs)
    model = HierMemModel.from_pretrained(found["out"])
    assert model.config.working.policy == "namm" and model.config.working.head_shares is not None
    assert model.summary is not None and model.mamba.groups
    assert set(found["figures"]) == {"window", "attention", "full attention", "equipped"}
    figures = found["figures"]["equipped"]
    assert (figures["books"] + figures["codes"]) / 2 == pytest.approx(found["stages"][-1]["after"])
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| heads |" in card and "hiermem equip" in card
    memory = model.read("word1 word2. " * 90, progress=False)
    assert memory.tokens and model.ask(memory, "word1 word2", max_new_tokens=2).sources


def test_a_run_that_is_stopped_in_any_stage_goes_on_to_the_same_model(
    wide_model: Path, data: Path, tmp_path: Path
) -> None:
    whole = equip(small_stages(), run_of(wide_model, data, tmp_path / "whole"))
    stopped = run_of(wide_model, data, tmp_path / "stopped")
    with patch.object(Evolution, "make", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        equip(small_stages(), stopped)
    for times in range(3):  # within the memory's second step, then in each of the two trainings of heads
        with stopped_in_step(times % 2):
            equip(small_stages(), stopped)
    with patch.object(equipping, "_finish", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        equip(small_stages(), stopped)
    resumed = equip(small_stages(), stopped)
    for stage, other in zip(whole["stages"], resumed["stages"], strict=True):
        assert {**stage, "seconds": 0} == {**other, "seconds": 0}
    assert whole["figures"] == resumed["figures"]
    files = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())
    again = equip(small_stages(), stopped)  # nothing is left to do
    assert again == resumed


@needs_deepspeed
@pytest.mark.timeout(600)
def test_two_processes_equip_as_one(wide_model: Path, data: Path, tmp_path: Path) -> None:
    """Sums over samples are in another order, so figures agree to 1e-4."""
    job = launch(TESTS / "equip_ranks.py", wide_model, data, tmp_path)
    output, _ = job.communicate()
    assert job.returncode == 0, output[-3000:]
    found = json.loads((tmp_path / "out" / LEDGER).read_text("utf-8"))
    alone = equip(small_stages(), run_of(wide_model, data, tmp_path / "alone"))
    for stage, entry in zip(alone["stages"], found["done"][1:], strict=True):
        assert entry["mean"] == pytest.approx(stage["after"], abs=1e-4)
    for name, figures in alone["figures"].items():
        assert found["compared"][name] == pytest.approx(figures, abs=1e-4)
    assert HierMemModel.from_pretrained(tmp_path / "out").mamba.groups


def test_a_stage_that_makes_it_worse_is_left_out(wide_model: Path, data: Path, tmp_path: Path) -> None:
    memory = small_stages().stages[2]
    stages = (Spoiled("spoiled"), memory)
    with spoilt_figures("spoiled"):
        found = equip(EquipConfig(stages, VALIDATION), run_of(wide_model, data, tmp_path / "out"))
    spoiled, trained = found["stages"]
    assert not spoiled["kept"] and trained["before"] == spoiled["before"] < spoiled["after"]
    (tmp_path / "out").rename(tmp_path / "moved")
    assert HierMemModel.from_pretrained(tmp_path / "moved").summary is not None
    ledger = json.loads((tmp_path / "moved" / LEDGER).read_text("utf-8"))
    assert [entry["kept"] for entry in ledger["done"]] == [True, False, True]


@pytest.mark.parametrize("linear", [0.5, 1.5])
def test_budgets_take_what_validates_best(
    wide_model: Path, data: Path, tmp_path: Path, linear: float
) -> None:
    """The power first, then linear scores with these shares."""
    seen: list[Any] = []
    worth = iter((3.0, 1.0, 2.0, linear))

    def judge(model: HierMemModel) -> Any:
        seen.append(model.config.working.head_shares)
        return type("Found", (), {"mean": next(worth)})

    stage = Budgets("budgets", CalibrationConfig(tokens=256, texts=1), powers=(0.4, 1.0))
    folder = stage.make(run_of(wide_model, data, tmp_path), judge)
    assert seen[0] is None and seen[1] != seen[2] and seen[3] == seen[1]
    working = HierMemConfig.from_saved(folder).working
    assert working.head_shares == seen[1]
    assert working.policy == ("linear" if linear < 1.0 else "attention")
    assert HierMemModel.from_pretrained(folder).scorer.is_set


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    wide_model: Path, data: Path, tmp_path: Path
) -> None:
    words = ("equip", wide_model, "--data", data, "--out", tmp_path / "out", "--size", "full", "--dry-run")
    work = result(*words)["work"]
    assert any("524,288,000 tokens trained" in line for line in work)
    assert not any(line.startswith("heads") for line in result(*words, "--skip", "heads")["work"])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_equipped_is_refused(wide_model: Path, data: Path, tmp_path: Path) -> None:
    words = ("--data", data, "--out", tmp_path / "out")
    huge, keys = (
        run("equip", wide_model, *words, "--size", "huge"),
        run("equip", wide_model, *words, "--skip", "keys"),
    )
    assert_refused(huge, "choose one of tiny, small, full")
    assert_refused(keys, "There is no stage 'keys'")
    assert_refused(run("equip", "smollm2-hmt", *words), "has a hierarchy already")
    missing = run("equip", wide_model, "--data", tmp_path / "no", "--out", tmp_path / "o")
    assert_refused(missing, "There is no book in")
    assert not (tmp_path / "out").exists()
    there = run_of(wide_model, data, tmp_path / "out")
    one = EquipConfig(small_stages().stages[:1], VALIDATION)
    equip(one, there)
    batch = replace(TRAININGS["together"](), optimizer=OptimizerConfig(batch=3, micro=1))
    with pytest.raises(InputError, match="does not divide into 2 processes"):
        Training("together", (("together", batch),)).check(2)
    with pytest.raises(InputError, match="is of a run with other settings"):
        equip(EquipConfig(one.stages, replace(VALIDATION, codes=3)), there)
    (there.output / LEDGER).write_text("{", "utf-8")
    with pytest.raises(InputError, match="is damaged: give another folder"):
        equip(one, there)
