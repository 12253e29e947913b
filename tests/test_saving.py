"""Models on disk: whatever a backbone became comes back, and what cannot is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damage import adapters_work
from readers import backbone, ids_of, reader, settings, text_of, tokenizer
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from hiermem.card import base_model, card
from hiermem.config import HierMemConfig
from hiermem.errors import BackboneUnsupportedError, InputError, MemoryIncompatibleError
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel

DATA = Path(__file__).parent / "data"
IDS = ids_of(60)


def logits(model: HierMemModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def lora(**settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    if not adapters_work():
        pytest.skip("adapters need a version of PEFT that transformers takes")
    defaults = {"r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return peft.LoraConfig(task_type="CAUSAL_LM", **(defaults | settings))


@pytest.fixture
def model(tiny_model: Path) -> HierMemModel:
    return HierMemModel.from_pretrained(tiny_model, settings(policy="attention"), dtype=torch.float32)


def assert_comes_back(model: HierMemModel, folder: Path) -> HierMemModel:
    model.save_pretrained(folder)
    again = HierMemModel.from_pretrained(folder)
    assert torch.equal(logits(again), logits(model))
    return again


# ---- trained weights


def trained(backbone: PreTrainedModel) -> None:
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.add_(0.05)


def one_value(backbone: PreTrainedModel) -> None:
    backbone.model.embed_tokens.weight.data[17, 3] += 4.0


def merged(backbone: PreTrainedModel) -> None:
    backbone.add_adapter(lora())
    for layer in backbone.modules():
        if hasattr(layer, "merge"):
            layer.merge()
    for parent in list(backbone.modules()):
        for name, layer in list(parent.named_children()):
            if hasattr(layer, "base_layer"):
                setattr(parent, name, layer.base_layer)
    backbone._hf_peft_config_loaded = False


def resized(backbone: PreTrainedModel) -> None:
    torch.manual_seed(0)
    backbone.resize_token_embeddings(331)


@pytest.mark.parametrize("change", [trained, one_value, merged, resized])
def test_a_backbone_that_changed_comes_back(
    model: HierMemModel, tmp_path: Path, change: Callable[[PreTrainedModel], None]
) -> None:
    change(model.backbone)
    again = assert_comes_back(model, tmp_path / "one")
    assert_comes_back(again, tmp_path / "one")  # onto the weights it was loaded from
    shutil.rmtree(tmp_path / "one")
    assert_comes_back(again, tmp_path / "other")


def test_a_backbone_in_another_dtype_is_saved_as_it_is(model: HierMemModel, tmp_path: Path) -> None:
    model.backbone.bfloat16()
    model.save_pretrained(tmp_path)
    again = HierMemModel.from_pretrained(tmp_path, dtype="auto").backbone.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.backbone.state_dict().items())


def test_a_backbone_as_its_name_says_is_not_copied(model: HierMemModel, tmp_path: Path) -> None:
    logits(model)
    assert_comes_back(model, tmp_path)
    assert not any(name.startswith("backbone.") for name in load_file(tmp_path / "model.safetensors"))
    assert not (tmp_path / "backbone").exists()


def test_a_backbone_without_a_name_is_saved_whole(tmp_path: Path) -> None:
    again = assert_comes_back(reader(config=settings(policy="attention")), tmp_path)
    assert again.tokenizer is not None and again.config.backbone == ""


def test_shards_of_weights_come_back(tmp_path: Path) -> None:
    model = reader(config=settings(policy="attention"))
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(HierMemModel.from_pretrained(tmp_path)), logits(model))
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("model-*")) and not (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(logits(HierMemModel.from_pretrained(tmp_path)), logits(model))


def test_weights_that_no_configuration_makes_are_refused(model: HierMemModel, tmp_path: Path) -> None:
    model.backbone.register_parameter("stranger", torch.nn.Parameter(torch.ones(1)))
    with pytest.raises(InputError, match="stranger"):
        model.save_pretrained(tmp_path)
    wrapped = reader(config=settings(policy="attention"))
    pytest.importorskip("peft").get_peft_model(wrapped.backbone, lora())
    with pytest.raises(InputError, match="PeftModel"):
        wrapped.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_comes_back_without_one(tmp_path: Path) -> None:
    again = assert_comes_back(HierMemModel(settings(policy="attention"), backbone()).eval(), tmp_path)
    assert again.tokenizer is None
    with pytest.raises(InputError, match="no tokenizer"):
        again.read(text_of(20))


def test_a_backbone_that_a_folder_leads_to_is_named_unless_it_is_known(
    model: HierMemModel, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.save_pretrained(tmp_path / "saved")
    for dtype in (torch.float32, torch.bfloat16):
        HierMemModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    assert not caplog.records
    moved = shutil.move(tiny_model, tmp_path / "kept")
    try:
        backbone(seed=1).save_pretrained(tiny_model)
        tokenizer().save_pretrained(tiny_model)
        HierMemModel.from_pretrained(tmp_path / "saved")
        assert f"takes its backbone from {tiny_model}" in caplog.text
    finally:
        shutil.rmtree(tiny_model)
        shutil.move(moved, tiny_model)


def test_a_given_state_is_saved(model: HierMemModel, tmp_path: Path) -> None:
    state = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    again = HierMemModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], state[name]) for name in again if name.startswith("backbone."))
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


# ---- adapters


@pytest.mark.parametrize("active", [["default"], ["default", "other"], ["other"], []])
def test_adapters_come_back_with_those_that_are_active(
    model: HierMemModel, tmp_path: Path, active: list[str]
) -> None:
    torch.manual_seed(1)
    model.add_adapter(lora())
    model.add_adapter(lora(r=3, target_modules=["k_proj"]), "other")
    if active:
        model.set_adapter(active)
    else:
        model.disable_adapters()
    again = assert_comes_back(model, tmp_path)
    assert not (tmp_path / "backbone").exists()
    again.enable_adapters()
    again.set_adapter("other")
    model.enable_adapters()
    model.set_adapter("other")
    assert torch.equal(logits(again), logits(model))
    for place in ("", "other/"):
        known = json.loads((tmp_path / "adapter" / place / "adapter_config.json").read_text())
        assert known["base_model_name_or_path"] is None


def test_adapters_that_were_chosen_by_expressions_are_saved_by_names(
    model: HierMemModel, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    chosen = {"target_modules": r".*\.\d+\..*[kqv]_proj", "exclude_modules": r".*1.*v_proj"}
    patterns = {"rank_pattern": {"0.*q_proj": 3}, "alpha_pattern": {".*k_proj": 5}}
    model.add_adapter(lora(**chosen, **patterns, modules_to_save=["lm_head"]))
    assert_comes_back(model, tmp_path)
    known = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert "model.layers.0.self_attn.q_proj" in known["target_modules"] and known["exclude_modules"] is None
    assert known["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 3}


def test_an_adapter_whose_name_is_a_path_is_refused(model: HierMemModel, tmp_path: Path) -> None:
    model.add_adapter(lora(), "a/b")
    with pytest.raises(InputError, match="without a slash"):
        model.save_pretrained(tmp_path)


def test_a_trained_backbone_under_an_adapter_comes_back(model: HierMemModel, tmp_path: Path) -> None:
    model.add_adapter(lora(modules_to_save=["lm_head"]))
    trained(model.backbone)
    again = assert_comes_back(model, tmp_path)
    again.disable_adapters()
    model.disable_adapters()
    assert torch.equal(logits(again), logits(model))
    model.delete_adapter("default")


def test_adapters_that_are_gone_are_swept(model: HierMemModel, tiny_model: Path, tmp_path: Path) -> None:
    model.add_adapter(lora())
    model.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapter" / "mine.txt").write_text("mine, too")
    plain = HierMemModel.from_pretrained(tiny_model, settings())
    assert_comes_back(plain, tmp_path)
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == ["mine.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


# ---- transformers' Trainer


@pytest.mark.parametrize("kind", ["backbone", "memory", "adapter"])
def test_a_trainers_checkpoint_goes_on_as_if_it_had_not_stopped(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    from transformers import Trainer, TrainingArguments

    data = [{"input_ids": row, "labels": row} for row in ids_of(40, rows=8)]

    def trainer(folder: Path) -> Trainer:
        model = HierMemModel.from_pretrained(tiny_model, settings(policy="attention"), dtype=torch.float32)
        if kind == "adapter":
            torch.manual_seed(2)
            model.add_adapter(lora())
        if kind == "memory":
            model.replace_heads(type(model.config.mamba)(groups=[[0, 0]]))
            for name, weight in model.named_parameters():
                weight.requires_grad_(name.startswith("mamba."))
        arguments = TrainingArguments(
            str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=2, learning_rate=3e-2,
            report_to=[], use_cpu=True, seed=3, disable_tqdm=True, logging_steps=1, max_grad_norm=0.0,
        )  # fmt: skip
        return Trainer(model, arguments, train_dataset=data, processing_class=tokenizer())

    whole = trainer(tmp_path / "run")
    whole.train()
    stopped = trainer(tmp_path / "run")
    stopped.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected, found = whole.model.state_dict(), stopped.model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert not torch.equal(
        logits(whole.model), logits(HierMemModel.from_pretrained(tiny_model, settings(policy="attention")))
    )
    again = HierMemModel.from_pretrained(tmp_path / "run" / "checkpoint-4")  # its tokenizer was written twice
    assert torch.equal(logits(again), logits(whole.model.eval()))


# ---- what else is saved


def test_the_generation_config_comes_back(model: HierMemModel, tmp_path: Path) -> None:
    model.generation_config.repetition_penalty = 1.3
    assert assert_comes_back(model, tmp_path).generation_config.repetition_penalty == 1.3
    model.generation_config = GenerationConfig(do_sample=False, temperature=0.3)
    with pytest.raises(InputError, match="generation config"):
        model.save_pretrained(tmp_path)


def test_the_card_names_no_local_folder(model: HierMemModel, tiny_model: Path, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert str(tiny_model) not in text and "base_model" not in text
    assert "license: other" in text and "- hiermem" in text and "pipeline_tag: text-generation" in text
    assert base_model("org/name") == "org/name" and base_model(str(tiny_model)) is None
    assert "license: apache-2.0" in card("smollm2", whole=False)
    (tmp_path / "README.md").write_text("my own words")
    assert_comes_back(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nonsense": 1}, "'nonsense'"),
        ({"safe_serialization": False}, "safetensors alone"),
        ({"variant": "fp16"}, "'variant'"),
        ({"token": "x"}, "set push_to_hub"),
    ],
)
def test_unknown_options_of_saving_are_refused(
    model: HierMemModel, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        model.save_pretrained(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_model_is_uploaded_and_nothing_else(
    model: HierMemModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def create(self: Any, repo_id: str, **known: Any) -> Any:
        calls.append({"repo": repo_id, "token": self.token, **known})
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload(self: Any, **known: Any) -> Any:
        calls.append(known)
        return SimpleNamespace(commit_url="https://hub/me")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "secret.txt").write_text("x")
    model.save_pretrained(tmp_path / "kept", push_to_hub=True, token="t", private=True)
    assert calls[0] == {"repo": "kept", "token": "t", "private": True, "exist_ok": True}
    assert calls[1]["repo_id"] == "me/kept" and "config.json" in calls[1]["allow_patterns"]
    assert "secret.txt" not in calls[1]["allow_patterns"]
    assert model.push_to_hub("named", commit_message="words") == "https://hub/me"
    assert calls[2]["repo"] == "named" and calls[3]["commit_message"] == "words"
    assert model.name_or_path == str(tmp_path / "kept")


# ---- earlier formats


@pytest.mark.parametrize("version", [1, 2])
def test_models_and_memories_of_earlier_formats_answer(version: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DATA / f"saved-{version}" / "model", folder)
    values = json.loads((folder / "config.json").read_text())
    values["backbone"] = str(DATA / "saved-2" / "backbone")
    (folder / "config.json").write_text(json.dumps(values))
    lora()
    model = HierMemModel.from_pretrained(folder, dtype=torch.float32, device="cpu")
    with safe_open(DATA / f"saved-{version}" / "expected.safetensors", framework="pt") as expected:
        with torch.no_grad():
            found = model(torch.arange(3, 73)[None]).logits[:, -1:]
        torch.testing.assert_close(found, expected.get_tensor("logits"), atol=1e-4, rtol=1e-4)
        assert model.fingerprint() == json.loads(expected.metadata()["fingerprint"])
    memory = MemoryState.load(DATA / f"saved-{version}" / "memory", model)
    assert memory.text == text_of(40)
    model.ask(memory, "Who?", max_new_tokens=2)
    assert_comes_back(model, folder)
    assert json.loads((folder / "config.json").read_text())["format_version"] == 4


# ---- fingerprints


def in_place(model: HierMemModel) -> None:
    for weight in model.backbone.parameters():
        weight.data.mul_(1.01)


def loaded_again(model: HierMemModel) -> None:
    model.backbone.load_state_dict(backbone(seed=1).state_dict(), strict=False)


def one_layer(model: HierMemModel) -> None:
    model.backbone.model.layers[1].mlp.up_proj.weight.data.zero_()


def off(model: HierMemModel) -> None:
    model.disable_adapters()


def chosen(model: HierMemModel) -> None:
    model.set_adapter("other")


def other_text(model: HierMemModel) -> None:
    from tokenizers import normalizers

    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize("change", [in_place, loaded_again, one_layer, off, chosen, other_text])
def test_a_memory_is_refused_once_its_model_is_another(
    tiny_model: Path, tmp_path: Path, change: Callable[[HierMemModel], None]
) -> None:
    model = HierMemModel.from_pretrained(tiny_model, settings(policy="attention"))
    model.add_adapter(lora())
    model.add_adapter(lora(), "other")
    model.set_adapter(["default", "other"])
    memory = model.read(text_of(40))
    memory.save(tmp_path / "m.hmem")
    model.ask(memory, "Who?", max_new_tokens=1)
    change(model)
    with pytest.raises(MemoryIncompatibleError):
        model.ask(memory, "Who?", max_new_tokens=1)
    with pytest.raises(MemoryIncompatibleError):
        MemoryState.load(tmp_path / "m.hmem", model)


# ---- options of loading


@pytest.mark.parametrize(
    "options",
    [
        {"local_files_only": True, "token": None, "cache_dir": None, "force_download": False},
        {"device_map": "cpu"},
        {"device_map": {"": "cpu"}, "torch_dtype": torch.float32},
        {"attn_implementation": "eager", "low_cpu_mem_usage": True},
        {"dtype": "float32", "proxies": None, "revision": None, "use_safetensors": True},
    ],
)
def test_options_of_transformers_are_taken(tiny_model: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    model = HierMemModel.from_pretrained(tiny_model, settings(policy="attention"), **options)
    if "attn_implementation" in options:
        assert model.backbone.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(HierMemModel.from_pretrained(tmp_path, **options)), logits(model))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"nonsense": 3}, "'nonsense'"),
        ({"state_dict": {}}, "'state_dict'"),
        ({"dtype": torch.float32, "torch_dtype": torch.float16}, "one option"),
        ({"device": "cpu", "device_map": "cpu"}, "contradict"),
        ({"adapter_kwargs": {"stranger": 1}}, "'stranger'"),
        ({"code_revision": "main"}, "trust_remote_code"),
        ({"config": "full"}, "HierMemConfig"),
    ],
)
def test_other_options_of_loading_are_refused(
    tiny_model: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        HierMemModel.from_pretrained(tiny_model, **options)


def test_a_backbone_over_several_devices_is_refused(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AutoModelForCausalLM.from_pretrained

    def spread(*args: Any, **kwargs: Any) -> Any:
        made, found = real(*args, **kwargs)
        made.hf_device_map = {"model": 0, "lm_head": "cpu"}
        return made, found

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", spread)
    with pytest.raises(BackboneUnsupportedError, match="one device"):
        HierMemModel.from_pretrained(tiny_model, device_map="auto")


def test_a_subfolder_is_where_the_model_is(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "models" / "plain")
    model = HierMemModel.from_pretrained(tmp_path / "models", settings(policy="attention"), subfolder="plain")
    model.save_pretrained(tmp_path / "models" / "saved")
    again = HierMemModel.from_pretrained(tmp_path / "models", subfolder="saved")
    assert torch.equal(logits(again), logits(model))
    assert again.name_or_path == str(tmp_path / "models" / "saved")


def test_a_saved_model_is_taken_from_the_hub(
    model: HierMemModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here from the hub's cache, which is full of links."""
    repository, commit = tmp_path / "hub" / "models--me--memory", "0" * 40
    model.save_pretrained(tmp_path / "saved")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    (repository / "snapshots" / commit).mkdir(parents=True)
    for file in (path for path in (tmp_path / "saved").iterdir() if path.is_file()):
        shutil.copy(file, repository / "blobs" / file.name)
        (repository / "snapshots" / commit / file.name).symlink_to(Path("../../blobs") / file.name)
    again = HierMemModel.from_pretrained("me/memory", cache_dir=tmp_path / "hub", local_files_only=True)
    assert again.name_or_path == "me/memory"
    assert torch.equal(logits(again), logits(model))
    with pytest.raises(InputError, match="could not be loaded"):
        HierMemModel.from_pretrained("me/nothing", cache_dir=tmp_path / "hub", local_files_only=True)


def test_settings_may_change_with_a_trained_backbone(model: HierMemModel, tmp_path: Path) -> None:
    trained(model.backbone)
    model.save_pretrained(tmp_path)
    bare = HierMemModel.from_pretrained(tmp_path, HierMemConfig.preset("bare"))
    with torch.no_grad():
        torch.testing.assert_close(logits(bare), model.backbone(IDS).logits, atol=1e-4, rtol=1e-4)
