"""The trained prompt in front of recalled keys and values: neutral at first, taught by answers to text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from readers import reader, settings
from safetensors.torch import save_file
from test_kv_passages import QUESTION, document, logits_of, model_of
from test_qa import WORDS, nq_row, write_lines
from torch import Tensor
from trainings import StoredObjective, stopped_in_step

from hiermem import kv_prompts, shipped
from hiermem.bundled import python_reference
from hiermem.errors import InputError
from hiermem.memory.attention import numbers
from hiermem.memory.kv.prompt import KVPrompt, KVPromptConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.model import HierMemModel
from hiermem.recalling import kv_tier
from hiermem.training import finetune
from hiermem.training.config import TrainConfig
from hiermem.training.kv_prompt import add_kv_prompt
from hiermem.training.preparation import Run
from hiermem.training.recipes import TRAININGS
from hiermem.training.stored_passages import PassageConfig, PassageDataset, StoredPassages


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat-model")
    model = model_of(layers=3)
    model.backbone.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def other(model: HierMemModel, scale: float = 0.2) -> None:
    """Give its prompt random parameters."""
    draw = torch.Generator().manual_seed(3)
    assert model.kv_prompt is not None
    with torch.no_grad():
        for weight in model.kv_prompt.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=draw))


def test_it_begins_as_what_the_backbone_reads_there() -> None:
    model = model_of(layers=3)
    memory = model.read(document(), progress=False)
    before = logits_of(model, model.prepare(memory, QUESTION))
    add_kv_prompt(model)
    assert model.kv_prompt is not None and model.config.kv_prompt.tokens == model.kv_prompt.num_tokens > 10
    torch.testing.assert_close(logits_of(model, model.prepare(memory, QUESTION)), before)
    other(model)
    assert not torch.allclose(logits_of(model, model.prepare(memory, QUESTION)), before, atol=0.1)


def test_it_stands_before_what_is_recalled_and_changes_that() -> None:
    """One layer, so that keys and values depend on nothing before."""
    model = model_of(kv={"keep": 1.0})
    memory = model.read(document(), progress=False)
    plain = model.prepare(memory, QUESTION).working
    add_kv_prompt(model)
    other(model)
    prompt, working = model.kv_prompt, model.prepare(memory, QUESTION).working
    ours, before, count = working.caches[0], plain.caches[0], prompt.num_tokens
    assert ours.values is not None and before.values is not None
    torch.testing.assert_close(ours.values[0, :, :count], prompt.values.detach())
    scale, shift = 1 + prompt.value_scale.detach()[:, None, None], prompt.value_shift.detach()[:, None]
    torch.testing.assert_close(ours.values[0, :, count:], before.values[0, :, count:] * scale + shift)
    lead = prompt.lead(kv_tier(memory).banks)
    keys, scale, shift = torch.randn(2, 5, 8), 1 + prompt.key_scale[:, None, None], prompt.key_shift[:, None]
    torch.testing.assert_close(lead.changes[0](keys, keys)[0], keys * scale + shift)


def test_a_batch_is_the_mean_of_its_samples_with_gradients() -> None:
    objective = StoredObjective()
    other(objective.model)
    weights = dict(objective.model.kv_prompt.named_parameters())

    def gradients(batches: list[StoredPassages]) -> tuple[Tensor, dict[str, Tensor]]:
        objective.zero_grad()
        total = sum(objective(batch).total for batch in batches) / len(batches)
        total.backward()
        return total.detach(), {name: weight.grad.clone() for name, weight in weights.items()}

    together = objective(StoredPassages(objective.passages[:4]))
    singles = [objective(StoredPassages([passage])) for passage in objective.passages[:4]]
    torch.testing.assert_close(together.nll[:, 0], torch.stack([single.language for single in singles]))
    loss, batch = gradients([StoredPassages(objective.passages[:4])])
    mean, single = gradients([StoredPassages([passage]) for passage in objective.passages[:4]])
    torch.testing.assert_close(loss, mean)
    assert loss > 0.01
    for name, gradient in batch.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, single[name], atol=1e-6, rtol=1e-3)


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    objective = StoredObjective()
    other(objective.model)
    batch, prompt = StoredPassages(objective.passages[:2]), objective.model.kv_prompt
    objective(batch).total.backward()
    for name, weight in prompt.named_parameters():
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        slope, step = float((weight.grad * direction).sum()), 1e-2
        with torch.no_grad():
            found = []
            for sign in (1, -2):
                weight.add_(sign * step * direction)
                found.append(float(objective(batch).total))
            weight.add_(step * direction)
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(slope, rel=0.05, abs=2e-3), name


# ---- where there is none


def test_what_cannot_have_a_prompt_says_so() -> None:
    with pytest.raises(InputError, match="0 tokens or more, not -1"):
        KVPromptConfig(tokens=-1)
    with pytest.raises(InputError, match="rotary positions and heads of one width"):
        reader("gpt2", type(settings())(**(settings().settings() | {"kv_prompt": KVPromptConfig(3)})))
    with pytest.raises(InputError, match="begin with nothing"):
        add_kv_prompt(reader())


def test_with_replaced_heads_the_others_have_theirs() -> None:
    change = {"mamba": MambaConfig(groups=[[0, 1], [2, 0]], taps=3, window=6, sinks=2)}
    model = model_of(3, None, None, change | {"kv_prompt": KVPromptConfig(4)})
    memory = model.read(document(), progress=False)
    other(model)
    working = model.prepare(memory, QUESTION).working
    for group, cache in zip(working.cache.head_groups, working.caches, strict=True):
        heads = range(2) if group.heads is None else numbers(group.heads, 2)
        rows = [2 * group.layer + head for head in heads]
        assert cache.values is not None
        torch.testing.assert_close(cache.values[0, :, :4], model.kv_prompt.values[rows].detach())


def test_a_prompt_that_nobody_trained_is_not_used(tmp_path: Path, chat_model: Path) -> None:
    model = model_of(3, change={"kv_prompt": KVPromptConfig(4)})
    memory = model.read(document(), progress=False)
    with pytest.raises(InputError, match="never trained: train it with the recipe kv"):
        model.ask(memory, QUESTION)
    config = settings()
    config.kv_prompt = KVPromptConfig(4)
    with pytest.raises(InputError, match=r"has no prompt of 4 keys and values: leave kv_prompt\.tokens out"):
        HierMemModel.from_pretrained(chat_model, config=config)
    HierMemModel.from_pretrained(chat_model).save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match="do not fit this configuration"):
        HierMemModel.from_pretrained(tmp_path / "saved", config=config)


def test_what_ships_for_a_backbone_is_taken_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(3)
    add_kv_prompt(model)
    file = tmp_path / "smollm2" / kv_prompts.FILE
    file.parent.mkdir()
    save_file(model.kv_prompt.state_dict(), file)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    config, shapes = settings(), model.adapter.geometries
    assert kv_prompts.of_backbone(config, shapes) is None
    config.backbone = "smollm2"
    found = kv_prompts.of_backbone(config, shapes)
    assert found is not None and torch.equal(found.keys, model.kv_prompt.keys)
    config.kv_prompt = KVPromptConfig(found.num_tokens)  # as a loaded model says
    again = kv_prompts.of_backbone(config, shapes)
    assert again is not None and torch.equal(again.keys, found.keys)
    config.kv_prompt = KVPromptConfig(3)
    longer = kv_prompts.of_backbone(config, shapes)
    assert longer is not None and longer.num_tokens == 3 and not longer.is_set
    config.kv_prompt = KVPromptConfig(0)
    assert kv_prompts.of_backbone(config, shapes) is None
    config.kv_prompt = KVPromptConfig()
    for tensors in ({"keys": torch.zeros(3)}, {"keys": torch.zeros(2, 3, 4)}, {}):
        save_file(tensors, file)
        with pytest.raises(InputError, match="is damaged"):
            kv_prompts.of_backbone(config, shapes)
    config.mamba = MambaConfig(groups=[[0, 1]])
    assert kv_prompts.of_backbone(config, shapes) is None


# ---- trained and saved


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    write_lines(folder / "nq" / "validation.jsonl", [nq_row(word) for word in WORDS])
    return folder


def config_of(steps: int = 3) -> TrainConfig:
    kv = TRAININGS["kv"]()
    small = replace(kv.passages or PassageConfig(), answer=6, held_out=0.3)
    optimizer = replace(kv.optimizer, batch=4, micro=2, memory_rate=0.02)
    return replace(
        kv, passages=small, optimizer=optimizer, steps=steps, warmup=1, evaluated=3, save_every=1, segment=16
    )


def test_a_training_teaches_it_goes_on_and_is_saved(data: Path, chat_model: Path, tmp_path: Path) -> None:
    where = Run(str(chat_model), data, tmp_path / "whole")
    whole = finetune.train(config_of(12), where)
    first = json.loads((tmp_path / "whole" / "history.jsonl").read_text().splitlines()[0])
    assert (
        whole["held_out"] < first["held_out"] and whole["history"][-1]["loss"] < whole["history"][0]["loss"]
    )
    stopped = replace(where, output=tmp_path / "stopped")
    with stopped_in_step(2):
        finetune.train(config_of(12), stopped)
    assert finetune.train(config_of(12), stopped)["history"] == whole["history"]

    one, again = (HierMemModel.from_pretrained(tmp_path / name) for name in ("whole", "stopped"))
    given = HierMemModel.from_pretrained(tmp_path / "whole", config=settings())  # keeps the prompt
    for model in (one, again, given):
        assert isinstance(model.kv_prompt, KVPrompt) and model.config.kv_prompt.tokens > 10
        for name, weight in model.kv_prompt.named_parameters():
            assert torch.equal(weight, dict(one.kv_prompt.named_parameters())[name])
    plain = HierMemModel.from_pretrained(chat_model)
    assert plain.kv_prompt is None and plain.config.kv_prompt.tokens == 0
    assert one.fingerprint() == plain.fingerprint()  # memories do not depend on it
    off = settings()
    off.kv_prompt = KVPromptConfig(0)
    assert HierMemModel.from_pretrained(tmp_path / "whole", config=off).kv_prompt is None


def test_questions_are_held_out_by_paragraph_and_come_once_an_epoch(data: Path, tmp_path: Path) -> None:
    model = model_of(layers=3)
    before = model.config.settings()
    passages = PassageDataset(model, data, PassageConfig(answer=4, held_out=0.4), tmp_path)
    assert model.config.settings() == before
    trained = passages.batch(range(5)).names
    held = set(passages.of_held_out().batch(range(20)).names)
    count = len(set(passages.batch(range(20)).names))
    assert not set(trained) & held and len(held) + count <= len(WORDS) and held
    assert len(set(passages.batch(range(count)).names)) == count
    again = PassageDataset(model, data, PassageConfig(answer=4, held_out=0.4), tmp_path)
    assert again.batch(range(5)).names == trained
    (file,) = tmp_path.glob("nq-*.answers.json")
    answers = json.loads(file.read_text("utf-8"))
    assert len(answers) == len(held) + count
    PassageDataset(model, data, PassageConfig(answer=4, held_out=0.4, keep=0.5), tmp_path)
    model.config.longterm.top_k = 1
    PassageDataset(model, data, PassageConfig(answer=4, held_out=0.4), tmp_path)
    assert len([*tmp_path.glob("nq-*.hmem")]) == 3  # what was made with other settings is made again


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    words = run("train", "--recipe", "kv", "--data", tmp_path, "--out", tmp_path / "out")
    assert_refused(words, "holds none of the folders nq, xquad: give --data one that does")


@pytest.mark.real
def test_the_real_model_answers_from_what_it_read() -> None:
    """The prompt that ships, in front of keys and values of another document than it was trained on."""
    model = HierMemModel.from_pretrained("smollm2", dtype="float32")
    assert model.kv_prompt is not None and model.kv_prompt.num_tokens == 28
    again = HierMemModel.from_pretrained("smollm2", config=model.config, dtype="float32")
    assert again.kv_prompt is not None and torch.equal(again.kv_prompt.keys, model.kv_prompt.keys)
    model.config.longterm = replace(model.config.longterm, tiers={"kv": {"keep": 1.0}})
    model.config.asking = replace(model.config.asking, passages="kv")
    topic = python_reference()[:4000]
    fact = "The captain of the Orion is Elias Thorn, who was born in Bergen in 1801. His ship carried salt."
    memory = model.read(f"{topic}\n\n{fact}\n\n{topic}", progress=False)
    question = "Where was Elias Thorn born?"
    prompt = model.prepare(memory, question)
    assert prompt.recalled and "Bergen" not in model.tokenizer.decode(prompt.ids[0])
    answer = model.ask(memory, question, max_new_tokens=24)
    assert answer.found and "Bergen" in answer.text and "Bergen" in answer.sources[0].text
