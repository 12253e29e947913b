"""A saved model's folder under damage, kills and strangers: refused in one sentence, or whole."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import adapters_work, damage, every_part, files_of, killed, outcome, reseal, value_of, whole
from readers import backbone, ids_of, settings, tokenizer
from safetensors.torch import load_file, save_file

from hiermem.errors import InputError
from hiermem.model import HierMemModel
from hiermem.seal import SEAL, render_seal

_watched: list[Path] = []
_opened: list[str] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched and event == "open" and str(arguments[0]).startswith(str(_watched[0])):
        _opened.append(str(arguments[0]))


sys.addaudithook(_watch)


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `named` and `whole`, each with an `-other`."""
    folder = tmp_path_factory.mktemp("saved")
    every_part(tiny_model, 0.5).save_pretrained(folder / "named")
    every_part(tiny_model, 0.25, 32).save_pretrained(folder / "named-other")
    whole(0.5).save_pretrained(folder / "whole")
    whole(0.25, 32).save_pretrained(folder / "whole-other")
    return folder


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder of which nothing may be read; code in it leaves a mark."""
    folder = tmp_path / "outside"
    backbone().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    write_code(folder)
    _watched.append(folder)
    yield folder
    _watched.clear()
    _opened.clear()


def write_code(folder: Path) -> None:
    """A module that leaves a mark when it runs."""
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass Evil: pass\n")


# ---- damage


@pytest.mark.parametrize("kind", ["named", "whole"])
def test_no_damage_loads_or_ends_in_a_traceback(saved: Path, tmp_path: Path, kind: str) -> None:
    for seed in range(25):
        shutil.copytree(saved / kind, tmp_path / "one")
        done = damage(tmp_path / "one", saved / f"{kind}-other", random.Random(seed))
        assert outcome(tmp_path / "one") == "refused", done
        shutil.rmtree(tmp_path / "one")
    assert outcome(saved / kind) == "loaded"


@pytest.mark.parametrize("kind", ["named", "whole"])
def test_no_file_may_be_missing_or_another(saved: Path, tmp_path: Path, kind: str) -> None:
    for file in files_of(saved / kind):
        name = file.relative_to(saved / kind)
        for replacement in (None, saved / f"{kind}-other" / name):
            if replacement is not None and replacement.read_bytes() == file.read_bytes():
                continue
            shutil.copytree(saved / kind, tmp_path / "one")
            (tmp_path / "one" / name).unlink()
            if replacement is not None:
                shutil.copy(replacement, tmp_path / "one" / name)
            assert outcome(tmp_path / "one") == "refused", (name, replacement)
            shutil.rmtree(tmp_path / "one")


def test_damage_behind_a_seal_that_fits_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    for seed in range(30):
        shutil.copytree(saved / "named", tmp_path / "one")
        damage(tmp_path / "one", saved / "named-other", random.Random(100 + seed))
        if (tmp_path / "one" / SEAL).is_file():
            reseal(tmp_path / "one")
        assert outcome(tmp_path / "one") in ("refused", "loaded"), seed
        shutil.rmtree(tmp_path / "one")


def test_a_tokenizer_that_is_saved_again_is_the_same(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "named", tmp_path / "one")
    again = tokenizer()
    again.save_pretrained(tmp_path / "one")
    assert outcome(tmp_path / "one") == "loaded"
    path = tmp_path / "one" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "</s>"}))
    with pytest.raises(InputError, match=r"tokenizer_config\.json .* changed"):
        HierMemModel.from_pretrained(tmp_path / "one")


def test_numbers_that_are_not_finite_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "named", tmp_path / "one")
    model = HierMemModel.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "one")
    parameters = model.state_dict()
    bad = {n: t * torch.nan if n.startswith("summary.") else t for n, t in parameters.items()}
    model.save_pretrained(tmp_path / "bad", state_dict=bad)
    with pytest.raises(InputError, match="finite"):
        HierMemModel.from_pretrained(tmp_path / "bad")


# ---- kills


@pytest.mark.parametrize("kind", ["named", "whole"])
def test_a_save_that_ends_before_any_of_its_operations_leaves_the_old_or_the_new(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    made = partial(every_part, tiny_model) if kind == "named" else whole
    models = [made(0.5, 16), made(0.25, 32)]
    models[0].save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    values, now, seen = [(16, {0.5}), (32, {0.25})], 0, set()
    for before in range(0, 400, 2):
        cut = killed(models[1 - now].save_pretrained, tmp_path / "saved", before=before)
        at = values.index(value_of(HierMemModel.from_pretrained(tmp_path / "saved", device="cpu")))
        seen.add((cut, at == now))
        now = at
        if not cut:
            break
    assert seen == {(True, True), (True, False), (False, False)}
    assert (tmp_path / "saved" / "notes.txt").read_text() == "mine"
    assert not [path for path in (tmp_path / "saved").iterdir() if path.name.startswith(".")]


def test_a_save_that_cannot_be_finished_says_so(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(saved / "named", tmp_path / "one")
    left = tmp_path / "one" / ".hiermem-saved"
    left.mkdir()
    shutil.copy(tmp_path / "one" / SEAL, left)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match="interrupted"):
        HierMemModel.from_pretrained(tmp_path / "one")


def test_a_disk_that_refuses_leaves_the_old_model(saved: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(saved / "named", tmp_path / "one")
    model = HierMemModel.from_pretrained(saved / "named-other")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hiermem.saving._write_tensors", full)
    with pytest.raises(InputError, match="No space left"):
        model.save_pretrained(tmp_path / "one")
    assert outcome(tmp_path / "one") == "loaded" and not list((tmp_path / "one").glob(".*"))


def test_a_folder_with_another_model_is_refused(saved: Path, outside: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(saved / "named")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"mine")
    (tmp_path / "file").write_text("")
    for place in (outside, tmp_path / "weights"):
        with pytest.raises(InputError, match="another model"):
            model.save_pretrained(place)
    with pytest.raises(InputError, match="is a file"):
        model.save_pretrained(tmp_path / "file")


# ---- strangers


def edited(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def pipe(folder: Path, outside: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def pipe_of_weights(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


def device(folder: Path, outside: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("/dev/zero")


def ragged(folder: Path, outside: Path) -> None:
    os.truncate(folder / "generation_config.json", 1 << 40)


def vocabulary_of_holes(folder: Path, outside: Path) -> None:
    os.truncate(folder / "tokenizer.json", 1 << 40)


def weights_of_holes(folder: Path, outside: Path) -> None:
    os.truncate(folder / "model.safetensors", 1 << 40)


def deep(folder: Path, outside: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "hiermem", "a": ' + "[" * 10**6)


def link_out(folder: Path, outside: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(outside / "tokenizer.json")


def folder_out(folder: Path, outside: Path) -> None:
    shutil.move(folder / "adapter", outside / "adapter")
    (folder / "adapter").symlink_to(outside / "adapter")


def relative(folder: Path, outside: Path) -> None:
    edited(folder, "config.json", backbone="../outside")


def relative_here(folder: Path, outside: Path) -> None:
    os.chdir(outside.parent)
    edited(folder, "config.json", backbone="outside")


def itself(folder: Path, outside: Path) -> None:
    edited(folder, "config.json", backbone=str(folder))


def code_of_backbone(folder: Path, outside: Path) -> None:
    edited(outside, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    edited(folder, "config.json", backbone=str(outside))
    _watched.clear()  # its configuration is read, nothing is run


def code_beside_the_memory(folder: Path, outside: Path) -> None:
    (folder / "backbone").mkdir()
    known = {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    }
    (folder / "backbone" / "config.json").write_text(json.dumps(known))
    shutil.copy(outside / "evil.py", folder / "backbone" / "evil.py")
    shutil.copy(outside / "evil.py", folder / "evil.py")


def code_of_tokenizer(folder: Path, outside: Path) -> None:
    shutil.copy(outside / "evil.py", folder / "evil.py")
    known = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(known))


def tokenizer_elsewhere(folder: Path, outside: Path) -> None:
    edited(folder, "tokenizer_config.json", tokenizer_file=str(outside / "tokenizer.json"))


def shards_elsewhere(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"namm.score.bias": "../outside/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def evictor_elsewhere(folder: Path, outside: Path) -> None:
    edited(folder, "config.json", evictor=str(outside))


def module_of_adapter(folder: Path, outside: Path) -> None:
    edited(folder, "adapter/adapter_config.json", megatron_core="evil", megatron_config={"a": 1})


def pickled_adapter(folder: Path, outside: Path) -> None:
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    (folder / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04.")


def kernel_on_the_hub(folder: Path, outside: Path) -> None:
    edited(folder, "config.json", attn_implementation="evil/kernel")


def rank(folder: Path, outside: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)


def strange_type(folder: Path, outside: Path) -> None:
    header = json.dumps({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")


def other_tensors(folder: Path, outside: Path) -> None:
    save_file({"summary.stranger": torch.zeros(3)}, folder / "model.safetensors")


def expression(folder: Path, outside: Path) -> None:
    edited(folder, "adapter/adapter_config.json", target_modules="(([a-z_.0-9]+)+)+!")


def expression_of_ranks(folder: Path, outside: Path) -> None:
    edited(folder, "adapter/adapter_config.json", rank_pattern={"(([a-z_.0-9]+)+)+!": 2})


def adapter_of_the_backbone(folder: Path, outside: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / "adapter" / name, folder)


WAYS = [
    pipe, pipe_of_weights, device, ragged, vocabulary_of_holes, weights_of_holes, deep,
    link_out, folder_out, relative, relative_here, itself,
    code_of_backbone, code_beside_the_memory, code_of_tokenizer, tokenizer_elsewhere, shards_elsewhere,
    evictor_elsewhere, module_of_adapter, pickled_adapter, kernel_on_the_hub, rank, strange_type,
    other_tensors, expression, expression_of_ranks, adapter_of_the_backbone,
]  # fmt: skip
OF_ADAPTERS = [
    folder_out, module_of_adapter, pickled_adapter, expression, expression_of_ranks, adapter_of_the_backbone,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_strangers_model_leads_nowhere(
    saved: Path,
    outside: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[[Path, Path], None],
    sealed: bool,
) -> None:
    if way in OF_ADAPTERS and not adapters_work():
        pytest.skip("adapters need a version of PEFT that transformers takes")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "one"
    shutil.copytree(saved / "named", folder)
    _watched.clear()
    way(folder, outside)
    if way is not code_of_backbone:
        _watched.append(outside)
    if not sealed:  # as saved before there were seals
        (folder / SEAL).unlink()
        if (folder / "config.json").is_file() and way is not deep:
            edited(folder, "config.json", format_version=2)
    elif way not in (pipe, pipe_of_weights, device, ragged, vocabulary_of_holes, weights_of_holes):
        reseal(folder)
    if way is code_beside_the_memory and not sealed:  # then a backbone was always elsewhere
        assert outcome(folder) == "loaded"
    else:
        assert outcome(folder) == "refused"
    assert not list(tmp_path.rglob("ran")) and not _opened


def test_a_plain_backbone_runs_no_code_and_no_pickle(outside: Path, tmp_path: Path) -> None:
    _watched.clear()
    shutil.copytree(outside, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(backbone().state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    edited(outside, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    for place in (outside, tmp_path / "pickled"):
        with pytest.raises(InputError, match="could not be loaded"):
            HierMemModel.from_pretrained(place, settings())
    assert not list(tmp_path.rglob("ran"))
    HierMemModel.from_pretrained(tmp_path / "pickled", settings(), use_safetensors=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "spiece.model", "qwen.tiktoken"])
def test_a_vocabulary_is_read_up_to_a_bound(
    outside: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _watched.clear()
    monkeypatch.setattr("hiermem.model_files._VOCABULARY", 1 << 20)
    (outside / name).write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(InputError, match="too many for such a file"):
        HierMemModel.from_pretrained(outside, settings())
    (outside / name).rename(outside / "corpus.txt")  # which nothing loads
    tokenizer().save_pretrained(outside)
    HierMemModel.from_pretrained(outside, settings(), device="cpu")


def test_code_runs_where_it_is_trusted(outside: Path) -> None:
    edited(outside, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    with pytest.raises(InputError):  # for what it holds is no configuration
        HierMemModel.from_pretrained(outside, settings(), trust_remote_code=True)
    assert (outside / "ran").exists()


ADDED = [
    "adapter/other/adapter_config.json", "adapter/other/adapter_model.safetensors", "adapter/active.json",
    "chat_template.jinja", "additional_chat_templates/rag.jinja", "added_tokens.json", "vocab.json",
    "special_tokens_map.json", "merges.txt", "spiece.model", "generation_config.json",
    "model.fp16.safetensors",
    "model.safetensors.index.json", "pytorch_model.bin", "backbone/generation_config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_no_save_wrote_is_named_where_it_would_be_loaded(
    saved: Path, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(saved / "whole", folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    if name == "generation_config.json":  # as where a model had none
        reseal(folder)
    (folder / name).write_text('{"weight_map": {}}')
    if name.endswith(".safetensors"):
        save_file({"a": torch.zeros(3)}, folder / name)
    with pytest.raises(InputError, match=rf"The file {name} was added"):
        HierMemModel.from_pretrained(folder, device="cpu")


def test_files_of_the_users_own_stay_beside_a_model(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.copytree(saved / "named", folder)
    for name in ("notes.txt", "results.json", "optimizer.pt", "training_args.bin", "adapter/deep/er/x.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("[]")
    save_file({"a": torch.zeros(3)}, folder / "evictor.safetensors")
    assert outcome(folder) == "loaded"


def test_a_tokenizer_beside_a_model_that_was_saved_without_one_is_taken(tmp_path: Path) -> None:
    model = HierMemModel(settings(), backbone())
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)  # as Trainer does
    assert HierMemModel.from_pretrained(tmp_path, device="cpu").tokenizer is not None


def test_adapters_lie_in_one_folder_or_in_folders_there(saved: Path, outside: Path, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    shutil.copytree(saved / "whole", folder)
    (folder / "adapter" / "a" / "b").mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (outside / name).write_text("{}")
        (folder / "adapter" / "a" / "b" / name).symlink_to(outside / name)
    _opened.clear()
    assert outcome(folder) == "loaded" and not _opened
    (folder / "adapter" / "c").symlink_to(outside)
    assert outcome(folder) == "refused" and not _opened


@pytest.mark.parametrize("change", ["lose", "shorten"])
def test_no_weight_of_a_whole_backbone_is_made_up(saved: Path, tmp_path: Path, change: str) -> None:
    shutil.copytree(saved / "whole", tmp_path / "one")
    path = tmp_path / "one" / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "layers.0" in name)
    weights[name] = weights[name][:-1].clone()
    if change == "lose":
        del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    reseal(tmp_path / "one")
    with pytest.raises(InputError, match=name.removeprefix("backbone.").replace(".", r"\.")):
        HierMemModel.from_pretrained(tmp_path / "one", device="cpu")


# ---- what a stranger claims that a killed save left


def left_behind(folder: Path, names: dict[str, str], sealed: list[str] | None = None) -> Path:
    """A folder as of a save that was killed after its commit, with these files and a seal of those names."""
    staged = folder / ".hiermem-saved"
    for name, text in names.items():
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text(text)
    listed = {name: {"bytes": 1, "sha256": "0"} for name in (names if sealed is None else sealed)}
    (staged / SEAL).write_bytes(render_seal(listed))
    return staged


def through_a_link(folder: Path, home: Path) -> None:
    (folder / "x").symlink_to(home)
    left_behind(folder, {"x/profile": "theirs"})


def outdated_through_a_link(folder: Path, home: Path) -> None:
    (folder / "x").symlink_to(home)
    (folder / SEAL).write_bytes(render_seal({"x/profile": {"bytes": 1, "sha256": "0"}}))
    left_behind(folder, {"config.json": "{}"})


def hidden(folder: Path, home: Path) -> None:
    left_behind(folder, {".profile": "theirs"})


def not_listed(folder: Path, home: Path) -> None:
    left_behind(folder, {"config.json": "{}", "other.json": "{}"}, ["config.json"])


def link_inside(folder: Path, home: Path) -> None:
    (left_behind(folder, {"config.json": "{}"}) / "x").symlink_to(home)


def link_itself(folder: Path, home: Path) -> None:
    left_behind(home, {"config.json": "{}"}).rename(home / "staged")
    (folder / ".hiermem-saved").symlink_to(home / "staged")


def no_seal(folder: Path, home: Path) -> None:
    (left_behind(folder, {"config.json": "{}"}) / SEAL).unlink()


def onto_a_folder(folder: Path, home: Path) -> None:
    (folder / "notes.json").mkdir()
    left_behind(folder, {"config.json": "{}", "notes.json": "{}"})


def seal_outside(folder: Path, home: Path) -> None:
    (home / "seal").write_bytes(render_seal({"profile": {"bytes": 1, "sha256": "0"}}))
    (folder / SEAL).symlink_to(home / "seal")
    left_behind(folder, {"config.json": "{}"})


CLAIMS = [
    through_a_link, outdated_through_a_link, hidden, not_listed, link_inside, link_itself, no_seal,
    onto_a_folder, seal_outside,
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_nothing_is_touched_where_no_save_of_hiermem_was_killed(
    tmp_path: Path, claim: Callable[[Path, Path], None]
) -> None:
    home, folder = tmp_path / "home", tmp_path / "stranger"
    home.mkdir()
    folder.mkdir()
    (home / "profile").write_text("mine")
    (folder / "profile").write_text("mine")
    claim(folder, home)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="take it away") as found:
        HierMemModel.from_pretrained(folder, device="cpu")
    assert "\n" not in str(found.value)
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_model_is_saved_over_one_whose_seal_is_damaged(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "named", tmp_path / "one")
    (tmp_path / "one" / SEAL).write_text("{}")
    HierMemModel.from_pretrained(saved / "whole", device="cpu").save_pretrained(tmp_path / "one")
    assert outcome(tmp_path / "one") == "loaded"


def test_a_save_goes_through_no_link(saved: Path, tmp_path: Path) -> None:
    model = HierMemModel.from_pretrained(saved / "whole", device="cpu")
    model.save_pretrained(tmp_path / "one")
    (tmp_path / "one" / "backbone").rename(tmp_path / "moved")
    (tmp_path / "one" / "backbone").symlink_to(tmp_path / "moved")
    before = (tmp_path / "one" / SEAL).read_bytes()
    with pytest.raises(InputError, match="backbone is no folder"):
        model.save_pretrained(tmp_path / "one")
    assert (tmp_path / "one" / SEAL).read_bytes() == before and not list((tmp_path / "one").glob(".*"))


# ---- transformers' Auto classes in processes of their own


@pytest.mark.parametrize(
    "code",
    [
        "import hiermem; from transformers import AutoConfig, pipeline; AutoConfig.from_pretrained({0!r}); "
        "pipeline('text-generation', model={0!r})('the', max_new_tokens=1)",
        "from transformers import AutoModelForCausalLM as Auto; "
        "Auto.from_pretrained({0!r}, trust_remote_code=True)",
    ],
)
def test_auto_classes_know_saved_models(saved: Path, tmp_path: Path, code: str) -> None:
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code.format(str(saved / "whole"))],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_auto_classes_hand_on_their_options(saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved / "whole", device_map="cpu", dtype=torch.float32)
    assert isinstance(model, HierMemModel)
    with torch.no_grad():
        assert model(ids_of(20)).logits.isfinite().all()


@pytest.mark.parametrize("trusts", [True, False])
def test_the_command_line_trusts_only_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, trusts: bool
) -> None:
    from hiermem.cli import main
    from hiermem.cli.options import TRUST_REMOTE_CODE, load_model

    given: dict[str, Any] = {}
    monkeypatch.setattr(HierMemModel, "from_pretrained", lambda *_, **options: given.update(options))
    before = TRUST_REMOTE_CODE.set(False)
    try:
        main.options(trust_remote_code=trusts)
        load_model("some/model", None, None, "cpu")
    finally:
        TRUST_REMOTE_CODE.reset(before)
    assert given["trust_remote_code"] is trusts
