"""Checkpoints in the layouts of NAMM's and HMT's public codes, against equations over their own tensors."""

import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import assert_refused, result, run
from readers import backbone, settings
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.eviction_weights import EvictionWeights
from hiermem.memory.policies import Namm
from hiermem.model import HierMemModel
from hiermem.public_weights import HMTWeights, namm_evictor

State = dict[str, Any]

STATISTICS = "stored_buffers_to_save.token_embedding_0_"
FEATURES, HIDDEN, BINS = 25, 32, 17
WIDTH, RECALL = 32, 24


def noise(*shape: int, seed: int = 0, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- NAMM


def evolved() -> State:
    """An evolution's checkpoint; of what is left aside, tensors are small."""
    state: State = {name: noise(3) for name in ("evo_path_c", "C", "sample_B", "x", "weights_truncated")}
    state |= {"mean": noise(4172, seed=1), "best_member": noise(4172, seed=2), "g": torch.tensor(7.0)}
    for beginning, seed in ((STATISTICS, 3), (f"best_{STATISTICS}", 4)):
        for part in ("online_new_output_", "output_"):
            shift = seed + 10 * (part == "output_")
            state[f"{beginning}{part}mean"] = noise(1, 1, 1, BINS, seed=shift)
            state[f"{beginning}{part}var"] = noise(1, 1, 1, BINS, seed=shift + 1).square() + 0.1
            state[f"{beginning}{part}num"] = torch.full((1, 1, 1, BINS), 9)
    return {"evolution_state": state, "iter_num": 170, "best_val_loss": np.mean([0.5, 0.7])}


def saved(checkpoint: Any, folder: Path) -> Path:
    path = folder / "ckpt.pt"
    torch.save(checkpoint, path)
    return path


def slow_scores(state: State, ages: list[int], averages: Tensor) -> list[float]:
    """Scores of one head's tokens, oldest first, from the flat vector, number by number."""
    flat = iter(state["mean"].tolist())
    maps = []
    for inputs, outputs in ((FEATURES, 3 * HIDDEN), (HIDDEN, 2 * FEATURES), (FEATURES, 1)):
        weight = [[next(flat) for _ in range(outputs)] for _ in range(inputs)]
        maps.append((weight, [next(flat) for _ in range(outputs)]))
    assert next(flat, None) is None

    def mapped(row: list[float], index: int) -> list[float]:
        weight, bias = maps[index]
        return [sum(x * w[o] for x, w in zip(row, weight, strict=True)) + b for o, b in enumerate(bias)]

    means, variances = (state[f"{STATISTICS}output_{name}"].flatten().tolist() for name in ("mean", "var"))
    rows = []
    for age, average in zip(ages, averages.tolist(), strict=True):
        angles = [age / 50000 ** (i / 4) for i in range(4)]
        spectrum = [(a - m) / math.sqrt(v) for a, m, v in zip(average, means, variances, strict=True)]
        rows.append([*map(math.sin, angles), *map(math.cos, angles), *spectrum])
    looks = [mapped(row, 0) for row in rows]
    scores = []
    for i, row in enumerate(rows):
        newer = looks[i:]
        logits = [
            sum(looks[i][j] * other[HIDDEN + j] for j in range(HIDDEN)) / math.sqrt(HIDDEN) for other in newer
        ]
        shares = [math.exp(logit - max(logits)) for logit in logits]
        seen = [
            sum(s * other[2 * HIDDEN + j] for s, other in zip(shares, newer, strict=True)) / sum(shares)
            for j in range(HIDDEN)
        ]
        change = mapped(seen, 1)
        changed = [x * (1 + change[FEATURES + j]) + change[j] for j, x in enumerate(row)]
        scores += mapped(changed, 2)
    return scores


def test_an_imported_network_scores_as_the_vector_says(tmp_path: Path) -> None:
    checkpoint = evolved()
    namm_evictor(saved(checkpoint, tmp_path)).save(tmp_path / "evictor")
    evictor = EvictionWeights.load(tmp_path / "evictor")
    network = Namm(evictor.namm)
    network.load_state_dict(evictor.network or {})
    ages, averages = torch.tensor([[900, 411, 40, 3, 0], [1017, 16, 15, 2, 1]]), noise(2, 5, BINS).abs()
    scores = network(ages, averages)
    for of_head, rows in enumerate(zip(ages.tolist(), averages, strict=True)):
        wanted = torch.tensor(slow_scores(checkpoint["evolution_state"], *rows))
        assert wanted.abs().min() > 1e-3
        torch.testing.assert_close(scores[of_head], wanted, rtol=1e-4, atol=1e-4)


def test_the_command_writes_an_evictor_that_a_model_takes(tmp_path: Path) -> None:
    path, out = saved(evolved(), tmp_path), tmp_path / "evictor"
    done = result("import", "namm", path, "--out", out)
    assert done == {"out": str(out), "parameters": 4172, "iteration": 170}
    config = HierMemConfig(**{**settings(policy="namm").settings(), "evictor": str(out)})
    model = HierMemModel(config, backbone())
    for name, tensor in (namm_evictor(path).network or {}).items():
        assert torch.equal(model.namm.state_dict()[name], tensor)
    assert b"4,172 parameters" in run("import", "namm", path, "--out", out).stdout


def test_wrapped_names_and_numbers_of_an_older_numpy_are_read(tmp_path: Path) -> None:
    checkpoint = evolved()
    wanted = namm_evictor(saved(checkpoint, tmp_path)).digest
    checkpoint["evolution_state"] = {f"_orig_mod.{n}": t for n, t in checkpoint["evolution_state"].items()}
    path, older = saved(checkpoint, tmp_path), tmp_path / "older.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(older, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert older.read_bytes() != path.read_bytes()
    assert namm_evictor(path).digest == namm_evictor(older).digest == wanted


def changed(name: str, value: Any) -> Callable[[State], State]:
    """An evolution's checkpoint with a tensor in another's place; None: without it."""

    def change(checkpoint: State) -> State:
        state = {n: t for n, t in checkpoint["evolution_state"].items() if n != name}
        return {**checkpoint, "evolution_state": state if value is None else {**state, name: value}}

    return change


REFUSED_NAMM: dict[str, tuple[Callable[[State], Any], str]] = {
    "another width": (changed("mean", noise(2026)), "another network (mean is [2026], not [4172])"),
    "no vector": (changed("mean", None), "lacks mean"),
    "another embedding": (changed(f"{STATISTICS}output_var", None), f"lacks {STATISTICS}output_var"),
    "left over": (changed("mean_b", noise(3)), "holds mean_b, unknown here"),
    "no numbers": (changed("mean", torch.full((4172,), torch.nan)), "damaged (mean holds no finite numbers)"),
    "whole numbers": (changed("mean", torch.zeros(4172, dtype=torch.int64)), "holds no finite numbers"),
    "a negative variance": (changed(f"{STATISTICS}output_var", -torch.ones(1, 1, 1, BINS)), "is negative"),
    "a sparse tensor": (changed("mean", noise(4172).to_sparse()), "another network (mean is no tensor"),
    "no tensor": (changed("mean", 3), "another network (mean is no tensor"),
    "a model": (lambda checkpoint: checkpoint["evolution_state"], "no checkpoint of NAMM's public code"),
    "a tensor": (lambda checkpoint: torch.zeros(3), "is no checkpoint"),
    "names that are none": (lambda c: {**c, "evolution_state": {3: noise(3)}}, "have no names"),
    "code": (lambda checkpoint: {**checkpoint, "best_val_loss": os.getcwd}, "more than tensors and numbers"),
}


@pytest.mark.parametrize("case", REFUSED_NAMM)
def test_what_is_no_network_of_namm_is_refused(case: str, tmp_path: Path) -> None:
    change, expected = REFUSED_NAMM[case]
    done = run("import", "namm", saved(change(evolved()), tmp_path), "--out", tmp_path / "evictor")
    assert_refused(done, expected)
    assert not (tmp_path / "evictor").exists()


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = saved(evolved(), tmp_path)
    cut, text, pipe = tmp_path / "cut.pt", tmp_path / "text.pt", tmp_path / "pipe"
    cut.write_bytes(path.read_bytes()[:-3000])
    text.write_text("no checkpoint")
    os.mkfifo(pipe)
    for file, expected in (
        (cut, "is damaged"),
        (text, "is damaged"),
        (pipe, "is a pipe, not a plain file"),
        (tmp_path, "is a folder, not a plain file"),
        (tmp_path / "none.pt", "There is no file"),
    ):
        assert_refused(run("import", "namm", file, "--out", tmp_path / "evictor"), expected)
        assert_refused(run("import", "hmt", file, "--model", "none", "--out", tmp_path / "made"), expected)
    assert_refused(run("import", "namm", path, "--out", text), "is a file: give a folder to --out")


# ---- HMT


def trained(width: int = WIDTH, recall: int = RECALL) -> State:
    """The public code's model around the tiny backbone."""
    own = {f"memory_cell.model.{name}": tensor for name, tensor in backbone().state_dict().items()}
    attention = {f"cross_attn.w{x}.weight": noise(recall, width, seed=ord(x)).bfloat16() for x in "qk"}
    maps = {f"memory_cell.mem_map.{x}linear.weight": noise(width, width) for x in ("", "inv_")}
    prompts = {"mem": noise(1, width, seed=5), "memory_cell.memory": noise(1, width, seed=6)}
    return {**prompts, **attention, **maps, **own, "memory_cell.model.a.rotary_emb.inv_freq": noise(8)}


def wide(width: int, recall: int) -> State:
    """A checkpoint of zeros, without what is left aside."""
    attention = {f"cross_attn.w{x}.weight": torch.zeros(recall, width, dtype=torch.bfloat16) for x in "qk"}
    return {"mem": torch.zeros(1, width), "memory_cell.memory": torch.zeros(1, width), **attention}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_imported_memory_recalls_as_the_checkpoint_says(
    prefix: str, wide_model: Path, tmp_path: Path
) -> None:
    state = trained()
    path = saved({prefix + name: tensor for name, tensor in state.items()}, tmp_path)
    done = result("import", "hmt", path, "--model", wide_model, "--out", tmp_path / "made")
    assert done == {
        "out": str(tmp_path / "made"),
        "recall_width": RECALL,
        "embedding_width": WIDTH,
        "backbone_tensors": len(backbone().state_dict()),
        "backbone_changed": 0,
        "left_aside": ["memory_cell.mem_map.inv_linear.weight", "memory_cell.mem_map.linear.weight"],
    }
    model = HierMemModel.from_pretrained(tmp_path / "made")
    hmt, preset = model.summary, HierMemConfig.preset("hmt")
    assert hmt is not None and model.config.segment == preset.segment
    assert vars(hmt.config) == {**vars(preset.summary), "width": RECALL}
    assert torch.equal(hmt.summary_prompt.weight, state["mem"])
    assert torch.equal(hmt.first_prompt.weight, state["memory_cell.memory"])
    query, past = noise(2, 1, WIDTH, seed=7), noise(2, 9, WIDTH, seed=8, scale=2.0)
    w_q, w_k = (state[f"cross_attn.w{x}.weight"].double() for x in "qk")
    for row in range(2):
        scores = (query[row].double() @ w_q.T) @ (past[row].double() @ w_k.T).T / math.sqrt(RECALL)
        assert scores.std() > 0.5
        wanted = (scores.softmax(-1) @ past[row].double()).float()
        prompt = hmt(query, past, torch.ones(2, 9, dtype=torch.bool))[row]
        torch.testing.assert_close(prompt, wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        hmt(query, past[:, :0], torch.ones(2, 0, dtype=torch.bool))[0], state["memory_cell.memory"]
    )


def test_a_backbone_that_was_trained_along_is_counted(wide_model: Path, tmp_path: Path) -> None:
    state = trained()
    norms = [name for name in state if name.endswith("input_layernorm.weight")]
    path = saved({**state, **{name: state[name] + 0.25 for name in norms}}, tmp_path)
    done = run("import", "hmt", path, "--model", wide_model, "--out", tmp_path / "made")
    assert done.returncode == 0, done.stderr.decode()
    assert f"{len(norms)} of them other than those of {wide_model}" in done.stdout.decode()
    half = saved({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path)
    assert (
        result("import", "hmt", half, "--model", wide_model, "--out", tmp_path / "made")["backbone_changed"]
        == 0
    )


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if name not in names}


RECALLS = [f"cross_attn.w{x}.weight" for x in "qk"]
LAYER = "memory_cell.model.model.layers.0.self_attn.q_proj"
REFUSED_HMT: dict[str, tuple[Callable[[State], Any], str]] = {
    "the first stage": (without("mem", *RECALLS), "lacks cross_attn.wk.weight, cross_attn.wq.weight, mem"),
    "no first prompt": (without("memory_cell.memory"), "lacks memory_cell.memory"),
    "a bias": (
        lambda s: {**s, "cross_attn.wq.bias": noise(RECALL)},
        "holds cross_attn.wq.bias, unknown here",
    ),
    "adapters": (lambda s: {**s, f"{LAYER}.lora_A.default.weight": noise(2, WIDTH)}, "adapters inside"),
    "two embeddings": (lambda s: {**s, "memory_cell.memory": noise(2, WIDTH)}, "[2, 32], not [1, 32]"),
    "two widths": (
        lambda s: {**s, "cross_attn.wk.weight": noise(RECALL + 1, WIDTH)},
        "[25, 32], not [24, 32]",
    ),
    "no sizes": (lambda s: {**s, "mem": noise(WIDTH)}, "mem is [32]"),
    "no numbers": (lambda s: {**s, "mem": torch.full((1, WIDTH), torch.inf)}, "mem holds no finite numbers"),
    "another scale": (lambda s: wide(4096, 4096), "divides scores by 4096 while it reads and by 64"),
    "another backbone": (lambda s: trained(40), "embeddings have 40 numbers, not 32"),
    "other layers": (lambda s: {**s, f"{LAYER}.bias": noise(8)}, "self_attn.q_proj.bias differs"),
    "another vocabulary": (
        lambda s: {**s, "memory_cell.model.lm_head.weight": noise(7, WIDTH)},
        "the backbone's weight lm_head.weight differs",
    ),
    "twice": (lambda s: {**s, "module.mem": s["mem"]}, "twice, with and without module."),
}


@pytest.mark.parametrize("case", REFUSED_HMT)
def test_what_is_no_memory_of_hmt_is_refused(case: str, wide_model: Path, tmp_path: Path) -> None:
    change, expected = REFUSED_HMT[case]
    path = saved(change(trained()), tmp_path)
    assert_refused(run("import", "hmt", path, "--model", wide_model, "--out", tmp_path / "made"), expected)
    assert not (tmp_path / "made").exists()


def test_a_model_is_made_around_a_plain_backbone_in_a_folder_of_its_own(
    wide_model: Path, tmp_path: Path
) -> None:
    path = saved(trained(), tmp_path)
    done = run("import", "hmt", path, "--model", wide_model, "--out", wide_model)
    assert_refused(done, "holds another model, maybe the backbone")
    done = run("import", "hmt", path, "--model", "smollm2-hmt", "--out", tmp_path / "made")
    assert_refused(done, "smollm2-hmt has a memory of its own")


def test_either_width_may_be_large(tmp_path: Path) -> None:
    """Where one is below 4,096, the public code has one scale."""
    assert HMTWeights.read(saved(wide(8, 4096), tmp_path)).shape == (4096, 8)
    assert HMTWeights.read(saved(wide(4096, 8), tmp_path)).shape == (8, 4096)
