"""Training Mamba heads: groups are chosen once, stages go on from each other, a stop changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hiermem.cli.options import configuration
from hiermem.errors import InputError
from hiermem.model import HierMemModel
from hiermem.training import finetune
from hiermem.training.distillation import HeadLearner, ReplacementConfig
from hiermem.training.engine import OptimizerConfig
from hiermem.training.objective import ObjectiveConfig
from hiermem.training.recency import RecencyConfig
from hiermem.training.recipes import TRAININGS, TrainConfig
from hiermem.training.samples import SampleConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train and a validation book in the layout of PG-19."""
    folder = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 1), ("validation", 3)):
        (folder / "pg19" / split).mkdir(parents=True)
        words = " ".join(f"word{(seed * i * i) % 89}" for i in range(400))
        (folder / "pg19" / split / f"{seed}.txt").write_text(words, "utf-8")
    return folder


def config_of(steps: int, **changes: object) -> TrainConfig:
    """The recipe `heads` in proportion to the tiny model."""
    recency = RecencyConfig(tokens=48, window=4, sinks=1)
    config = replace(
        TRAININGS["heads"]().with_steps(steps),
        samples=SampleConfig(tokens=48),
        replacement=ReplacementConfig(share=0.5, texts=2, recency=recency),
        optimizer=OptimizerConfig(memory_rate=0.01, batch=2, micro=1),
        evaluated=1,
        save_every=1,
    )
    return replace(config, **changes)


def test_heads_are_replaced_and_taught_in_stages(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole = finetune.Run(str(tiny_model), data, tmp_path / "whole", dtype="float32")
    first = finetune.train(config_of(4), whole)
    stopped = replace(whole, output=tmp_path / "stopped")
    for steps in (1, 3, 4):
        finetune.train(config_of(steps), stopped)
    for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "stopped" / "model.safetensors")[name], tensor)
    model = HierMemModel.from_pretrained(tmp_path / "whole")
    shapes = model.adapter.shapes
    assert len(model.mamba.groups) == round(sum(shape.heads for shape in shapes) / 2)
    assert first["trained"] == sum(weight.numel() for weight in model.mamba.parameters())
    assert first["history"][-1]["loss"] < first["history"][0]["loss"]

    together = config_of(
        2, replacement=None, objective=ObjectiveConfig(language=0.0, teacher=1.0, depth=0, whole=True)
    )
    second = replace(whole, model=str(tmp_path / "whole"), output=tmp_path / "second")
    finetune.train(together, second)
    again = HierMemModel.from_pretrained(tmp_path / "second")
    assert again.mamba.groups == model.mamba.groups and again.mamba.digest != model.mamba.digest
    for name, weight in again.backbone.named_parameters():
        assert torch.equal(weight, model.backbone.get_parameter(name))
    assert configuration(str(tmp_path / "second"), "streaming").mamba.groups == again.config.mamba.groups
    assert configuration(str(tmp_path / "second"), "bare").mamba.groups == []


def test_a_share_is_of_heads_that_are_replaced() -> None:
    half = TRAININGS["heads"]().with_share(0.5)
    assert half.replacement is not None and half.replacement.share == 0.5
    with pytest.raises(InputError, match="leave --share out"):
        TRAININGS["heads-logits"]().with_share(0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        TRAININGS["heads"]().with_share(1.0)


def test_without_replaced_heads_there_is_nothing_to_teach(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="replace some"):
        HeadLearner(HierMemModel.from_pretrained(tiny_model))
