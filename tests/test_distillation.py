"""Training Mamba heads: groups are chosen once, stages go on from each other, a stop changes nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from readers import ids_of, reader, settings
from safetensors.torch import load_file

from hiermem.cli.options import configuration
from hiermem.errors import InputError
from hiermem.lora import LoraConfig, add_lora
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig, ScanOrder
from hiermem.model import HierMemModel
from hiermem.training import finetune
from hiermem.training.batches import Sample, collated
from hiermem.training.checkpoints import run_lock
from hiermem.training.config import TrainConfig
from hiermem.training.distillation import HeadObjective, ReplacementConfig
from hiermem.training.head_selection import ChoiceConfig, keep_best_heads
from hiermem.training.objective import ObjectiveConfig
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.parameters import freeze_all_but, trainable_parameters
from hiermem.training.preparation import Run
from hiermem.training.recency import RecencyConfig
from hiermem.training.recipes import TRAININGS
from hiermem.training.samples import SampleConfig, TrainingDataset


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train and a validation book in the layout of PG-19."""
    folder = tmp_path_factory.mktemp("data")
    for split, seed in (("train", 1), ("validation", 3)):
        (folder / "pg19" / split).mkdir(parents=True)
        words = " ".join(f"word{(seed * i * i) % 89}" for i in range(400))
        (folder / "pg19" / split / f"{seed}.txt").write_text(words, "utf-8")
    return folder


WHOLE = ObjectiveConfig(language=0.0, teacher=1.0, depth=0, whole=True)


def config_of(steps: int, **changes: object) -> TrainConfig:
    """The recipe `heads` in proportion to the tiny model."""
    recency = RecencyConfig(tokens=48, window=4, sinks=1)
    config = replace(
        TRAININGS["heads"](),
        samples=SampleConfig(tokens=48),
        replacement=ReplacementConfig(share=0.5, texts=2, recency=recency),
        optimizer=OptimizerConfig(memory_rate=0.01, batch=2, micro=1),
        evaluated=1,
        save_every=1,
    )
    return replace(config, steps=steps, **changes)


def test_heads_are_replaced_and_taught_in_stages(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    whole = Run(str(tiny_model), data, tmp_path / "whole", dtype="float32")
    first = finetune.train(config_of(4), whole)
    stopped = replace(whole, output=tmp_path / "stopped")
    for steps in (1, 3, 4):
        finetune.train(config_of(steps), stopped)
    for name, tensor in load_file(tmp_path / "whole" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "stopped" / "model.safetensors")[name], tensor)
    model = HierMemModel.from_pretrained(tmp_path / "whole")
    shapes = model.adapter.geometries
    assert len(model.mamba.groups) == round(sum(shape.heads for shape in shapes) / 2)
    assert first["trained"] == sum(weight.numel() for weight in model.mamba.parameters())
    assert first["history"][-1]["loss"] < first["history"][0]["loss"]

    together = config_of(2, replacement=None, objective=WHOLE)
    second = replace(whole, model=str(tmp_path / "whole"), output=tmp_path / "second")
    finetune.train(together, second)
    again = HierMemModel.from_pretrained(tmp_path / "second")
    assert again.mamba.groups == model.mamba.groups and again.mamba.digest != model.mamba.digest
    for name, weight in again.backbone.named_parameters():
        assert torch.equal(weight, model.backbone.get_parameter(name))
    assert configuration(str(tmp_path / "second"), "streaming").mamba.groups == again.config.mamba.groups
    assert configuration(str(tmp_path / "second"), "bare").mamba.groups == []


def test_the_heads_that_change_least_stay(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One head is spoilt, so it goes; the others keep what they have learned."""
    taught = Run(str(tiny_model), data, tmp_path / "taught", dtype="float32")
    finetune.train(config_of(1), taught)
    model = HierMemModel.from_pretrained(taught.output)
    layer, group = spoilt = model.mamba.groups[0]
    at, repeats = model.mamba.of_layer(layer).index(group), model.adapter.geometries[layer].repeats
    with torch.no_grad():
        model.mamba.layers[str(layer)].scale[at * repeats : (at + 1) * repeats] = 3.0
    model.save_pretrained(taught.output)
    all_groups = sum(shape.heads for shape in model.adapter.geometries)
    share = (len(model.mamba.groups) - 1) / all_groups
    choosing = config_of(0, replacement=None, choice=ChoiceConfig(share=share, texts=2), objective=WHOLE)
    choosing = replace(choosing, samples=SampleConfig(books=0.5, facts=0.5, tokens=1100))
    chosen = replace(taught, model=str(taught.output), output=tmp_path / "chosen")
    assert finetune.train(choosing, chosen)["loss"] is None
    fewer = HierMemModel.from_pretrained(chosen.output)
    assert fewer.mamba.groups == [own for own in model.mamba.groups if own != spoilt]
    for (name, one), other in zip(
        model.mamba.only(fewer.mamba.groups).state_dict().items(),
        fewer.mamba.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(one, other), name
    with pytest.raises(InputError, match="change --share"):
        keep_best_heads(
            fewer, TrainingDataset(fewer.tokenizer, data, choosing.samples), ChoiceConfig(share=0.9)
        )


def test_fewer_heads_read_as_they_did_among_others(tiny_model: Path) -> None:
    """A head that is alone in its place is the same function: it has the parameters of its group."""
    model = reader(config=settings())
    model.replace_heads(MambaConfig(groups=[[1, 0], [2, 0], [2, 1]]))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.mamba.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    whole, layer = model.mamba, model.mamba.layers["2"]
    shape = model.adapter.geometries[2]
    q = torch.randn(1, 2 * shape.repeats, 20, shape.width)
    k, v = torch.randn(2, 1, 2, 20, shape.width)
    both = layer(q, k, v, ScanOrder(), None)[0]
    for at, group in enumerate((0, 1)):
        heads = slice(at * shape.repeats, (at + 1) * shape.repeats)
        own = whole.only([(2, group)]).layers["2"](
            q[:, heads], k[:, at : at + 1], v[:, at : at + 1], ScanOrder(), None
        )
        torch.testing.assert_close(own[0], both[:, heads])


def test_stages_begin_where_they_can(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    plain = Run(str(tiny_model), data, tmp_path / "heads", dtype="float32")
    with pytest.raises(InputError, match="what the recipe heads made"):
        finetune.train(config_of(1, replacement=None), replace(plain, output=tmp_path / "none"))
    summary = SummaryConfig(tokens=2, width=4)
    memory = config_of(1, replacement=None, trains=("prompt", "recall"), summary=summary)
    finetune.train(replace(memory, segment=16), replace(plain, output=tmp_path / "memory"))
    finetune.train(config_of(1), replace(plain, model=str(tmp_path / "memory")))
    both = HierMemModel.from_pretrained(tmp_path / "heads")
    assert both.summary is not None and both.mamba.groups and both.config.segment == 16
    with pytest.raises(InputError, match="Mamba heads already"):
        finetune.train(config_of(1), replace(plain, model=str(tmp_path / "heads"), output=tmp_path / "again"))


def test_two_runs_do_not_share_a_folder(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    run = Run(str(tiny_model), data, tmp_path / "heads", dtype="float32")
    with run_lock(run.output, writes=True), pytest.raises(InputError, match="Another process is writing"):
        finetune.train(config_of(1), run)
    assert finetune.train(config_of(1), run)["step"] == 1


def test_adapters_do_not_learn_to_be_imitated() -> None:
    model = reader(config=settings())
    add_lora(model.backbone, LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    model.replace_heads(MambaConfig(groups=[[1, 0]]))
    freeze_all_but(model, ("mamba",))
    objective = HeadObjective(model)
    assert not any(".lora_" in name for name in trainable_parameters(objective))
    objective(collated([Sample("one", ids_of(40)[0].tolist(), [True] * 40)], 40)).total.backward()
    assert all(weight.grad is None for weight in model.backbone.parameters())


def test_what_fills_a_sample_up_is_not_imitated() -> None:
    model = reader(config=settings())
    model.replace_heads(MambaConfig(groups=[[1, 0], [2, 1]]))
    objective, ids = HeadObjective(model), ids_of(30)[0].tolist()
    with torch.no_grad():
        short, filled = (objective(collated([Sample("a", ids, [True] * 30)], n)).total for n in (30, 60))
    torch.testing.assert_close(short, filled)


def test_what_a_recipe_says_may_be_changed() -> None:
    half = TRAININGS["heads"]().changed(share=0.5)
    assert half.replacement is not None and half.replacement.share == 0.5
    with pytest.raises(InputError, match="leave --share out"):
        TRAININGS["heads-logits"]().changed(share=0.5)
    third = TRAININGS["heads-chosen"]().changed(share=0.25)
    assert third.choice is not None and third.choice.share == 0.25
    with pytest.raises(InputError, match="leave --steps, --batch and --micro out"):
        TRAININGS["heads-chosen"]().changed(steps=5)
    sizes = TRAININGS["heads"]().changed(batch=16, micro=8).optimizer
    assert (sizes.batch, sizes.micro) == (16, 8)
    with pytest.raises(InputError, match="multiple of what is computed at once, not 8 of 3"):
        TRAININGS["heads"]().changed(batch=8, micro=3)
    with pytest.raises(InputError, match="between 0 and 1"):  # not all
        TRAININGS["heads"]().changed(share=1.0)


def test_without_replaced_heads_there_is_nothing_to_teach(tiny_model: Path) -> None:
    with pytest.raises(InputError, match="replace some"):
        HeadObjective(HierMemModel.from_pretrained(tiny_model))
