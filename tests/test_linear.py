"""The policy `linear`: scores against a slow reference, the fit, files, and models that are saved with it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from readers import backbone, ids_of, reader, settings, text_of, tokenizer
from safetensors.torch import save_file
from test_eviction_weights import plain_folder as plain_folder  # the fixture
from test_policies import eager_attention
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.eviction_weights import FILE, EvictionWeights, resolve_eviction_weights
from hiermem.memory.cache.layer import LayerCache
from hiermem.memory.cache.rope import Rotary
from hiermem.memory.policies.linear import LinearPolicy, LinearScorer, num_features
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.training.calibration import CalibrationConfig, calibrate
from hiermem.training.linear_fit import RIDGE, LinearFit

FAMILIES = ["llama", "gemma2", "gpt-neox", "gpt2"]


def fitted(family: str = "llama", **changes: object) -> HierMemModel:
    """A tiny model with random weights for its policy `linear`."""
    return reader(family, settings(8, 32, policy="linear", **changes), dtype=torch.float64)


def turned_back(rotary: Rotary | None, key: Tensor, position: int) -> Tensor:
    """A key of one token ``[D]`` as complex numbers, turned back to position 0 pair by pair."""
    if rotary is None:
        return key
    key, F = key.clone(), rotary.frequencies.numel()
    for f, frequency in enumerate(rotary.frequencies.double()):
        a, b = (2 * f, 2 * f + 1) if rotary.interleaved else (f, F + f)
        pair = torch.complex(key[a], key[b]) * torch.polar(torch.ones(()).double(), -frequency * position)
        key[a], key[b] = pair.real, pair.imag
    return key


def slow_features(rotary: Rotary | None, key: Tensor, value: Tensor, position: int) -> Tensor:
    plain = turned_back(rotary, key, position)
    parts = [plain, value, value.norm()[None], torch.ones(1).double()]
    if rotary is not None:
        F = rotary.frequencies.numel()
        pairs = [(2 * f, 2 * f + 1) if rotary.interleaved else (f, F + f) for f in range(F)]
        parts.append(torch.stack([(plain[a] ** 2 + plain[b] ** 2).sqrt() for a, b in pairs]))
    return torch.cat(parts)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_weighted_sums_of_what_a_token_left(family: str) -> None:
    model = fitted(family)
    memory = model.new_working_memory(replace(model.config.working, update_interval=64))
    model.read_ids(memory, ids_of(21))
    for layer, (cache, geometry) in enumerate(zip(memory.caches, model.adapter.geometries, strict=True)):
        assert cache.keys is not None and cache.values is not None and cache.position_ids is not None
        scores, weights = memory.cache.scores(layer, [21])[0], model.scorer.weights[layer].detach().double()
        for head in range(geometry.heads):
            for slot in range(cache.tokens):
                place = int(cache.position_ids[0, head, slot])
                key, value = cache.keys[0, head, slot], cache.values[0, head, slot]
                x = slow_features(geometry.rotary, key, value, place)
                assert scores[head, slot].item() == pytest.approx(float(x @ weights[head]), abs=2e-4)


def test_a_score_does_not_depend_on_where_the_frame_is() -> None:
    """Far beyond the trained range keys are turned; the score of a token stays what it was."""
    model = fitted()
    memory = model.new_working_memory(replace(model.config.working, budget=40, update_interval=8))
    scores: dict[int, Tensor] = {}
    for start in range(0, 160, 8):
        model.read_ids(memory, ids_of(160)[:, start : start + 8])
        positions = memory.caches[1].positions
        assert positions is not None
        for slot, position in enumerate(positions[0, 0].tolist()):
            now = memory.cache.scores(1, [start + 8])[0, 0, slot]
            if position >= 0:
                torch.testing.assert_close(now, scores.setdefault(position, now), atol=2e-3, rtol=1e-4)
    assert len(scores) == 160


def test_norms_of_rotary_pairs_of_both_layouts() -> None:
    keys = torch.tensor([3.0, 1.0, 4.0, 2.0, 9.0])
    halves, neighbours = Rotary(torch.ones(2)), Rotary(torch.ones(2), interleaved=True)
    assert halves.norms(keys).tolist() == pytest.approx([5.0, 5.0**0.5])
    assert neighbours.norms(keys).tolist() == pytest.approx([10.0**0.5, 20.0**0.5])


@torch.no_grad()
def test_sinks_and_recent_are_worth_everything() -> None:
    model = fitted()
    memory = model.new_working_memory(replace(model.config.working, update_interval=64))
    model.read_ids(memory, ids_of(21))
    stats = memory.cache._stats(memory.cache.head_groups[0], memory.caches[0], torch.full((1, 1, 1), 21))
    scores = memory.policy.protected_scores(replace(stats, recent=3))[0, 0]
    assert (scores[[0, 1, 18, 19, 20]] == torch.inf).all() and scores[2:18].isfinite().all()


# ---- the fit


def caches_of(model: HierMemModel, tokens: int) -> Sequence[LayerCache]:
    memory = model.adapter.whole_memory()
    model.read_ids(memory, ids_of(tokens))
    return memory.caches


def test_the_fit_is_ridge_regression_on_the_logarithm_of_attention() -> None:
    """Against least squares over rows that stand for the ridge, of the tokens of the text alone."""
    model = reader(config=settings(8, 64), dtype=torch.float64)
    caches, (first, end) = caches_of(model, 60), (5, 55)
    draw = torch.Generator().manual_seed(4)
    received = [torch.rand(2, 60, generator=draw) for _ in caches]
    fit = LinearFit(model.adapter.geometries)
    fit.add(caches, received, first, end)
    for geometry, cache, seen, weights in zip(
        model.adapter.geometries, caches, received, fit.weights(), strict=True
    ):
        assert cache.keys is not None and cache.values is not None
        for head in range(geometry.heads):
            x = torch.stack(
                [
                    slow_features(geometry.rotary, cache.keys[0, head, at], cache.values[0, head, at], at)
                    for at in range(first, end)
                ]
            )
            y = (seen[head, first:end].double() + 1e-5).log()
            ridge = RIDGE * float((x.T @ x).diagonal().mean())
            rows = torch.cat((x, torch.eye(x.shape[1]).double() * ridge**0.5))
            expected = torch.linalg.lstsq(rows, torch.cat((y, torch.zeros(x.shape[1]).double()))[:, None])
            residual, best = x @ weights[head].double() - y, x @ expected.solution[:, 0] - y
            assert float(residual.norm()) == pytest.approx(float(best.norm()), rel=1e-3)


def test_a_calibration_predicts_the_second_reading_better_than_its_mean() -> None:
    """On the text that it was made of: positive correlation in every head."""
    model, ids = reader(config=settings(8)), ids_of(200)[0].tolist()
    model.adapter.trained_range = 1024
    found = calibrate(model.reader, ids, CalibrationConfig(tokens=200, texts=1))
    assert [weight.shape for weight in found.linear] == [weight.shape for weight in model.scorer.weights]
    again = calibrate(model.reader, ids, CalibrationConfig(tokens=200, texts=1))
    assert all(torch.equal(one, two) for one, two in zip(found.linear, again.linear, strict=True))
    model.scorer.take(found.linear)
    memory = model.adapter.whole_memory(policy=LinearPolicy(network=model.scorer))
    model.read_ids(memory, torch.tensor([ids]))
    between = model.tokenizer("\n\nRepeat the previous context:\n\n").input_ids
    whole = torch.tensor([[*ids, *between, *ids]])
    for layer, matrix in enumerate(eager_attention("llama", whole)):
        again_seen = matrix.unflatten(0, (2, -1))[:, :, -200:, :200].amax((1, 2)).log()
        scores = memory.cache.scores(layer, [200])[0].double()
        for head in range(2):
            assert torch.corrcoef(torch.stack((scores[head], again_seen[head].double())))[0, 1] > 0.3


# ---- files and models


def evictor(model: HierMemModel) -> EvictionWeights:
    weights = [weight.detach().clone() for weight in model.scorer.weights]
    return EvictionWeights([[1.0, 3.0]] * 3, origin={"made_by": "a test"}, linear=weights)


def test_an_evictor_keeps_its_weights(tmp_path: Path) -> None:
    made = evictor(fitted())
    made.save(tmp_path)
    again = EvictionWeights.load(tmp_path)
    assert again.linear is not None and made.linear is not None
    assert all(torch.equal(one, two) for one, two in zip(again.linear, made.linear, strict=True))
    assert again.digest_for("linear") == made.digest_for("linear") != made.digest_for("namm")
    other = replace(made, linear=[weight + 1 for weight in made.linear])
    assert other.digest_for("linear") != made.digest_for("linear")
    assert other.digest_for("namm") == made.digest_for("namm")


def test_an_evictor_of_the_first_format_loads(tmp_path: Path) -> None:
    network = {"hidden": 0}
    header = {"format_version": 1, "namm": network, "origin": {"made_by": "hiermem calibrate"}}
    save_file({"shares": torch.ones(3, 2)}, tmp_path / FILE, metadata={"hiermem": json.dumps(header)})
    found = EvictionWeights.load(tmp_path)
    assert found.shares == [[1.0, 1.0]] * 3 and found.linear is None
    with pytest.raises(InputError, match="has no weights for the policy linear: make it again with"):
        resolve_eviction_weights(str(tmp_path), "some/backbone", "linear")


def test_a_damaged_and_a_foreign_evictor_are_refused(plain_folder: Path, tmp_path: Path) -> None:
    made = evictor(fitted())
    assert made.linear is not None
    replace(made, linear=[weight * torch.nan for weight in made.linear]).save(tmp_path / "nan")
    with pytest.raises(InputError, match="no tables of finite numbers"):
        EvictionWeights.load(tmp_path / "nan")
    replace(made, linear=made.linear[:2]).save(tmp_path / "short")
    config = HierMemConfig(**{**settings(policy="linear").settings(), "evictor": str(tmp_path / "short")})
    with pytest.raises(InputError, match="of a backbone with other layers or heads"):
        HierMemModel.from_pretrained(plain_folder, config)


def test_weights_are_not_lent_to_other_backbones() -> None:
    own, lent = (resolve_eviction_weights("auto", name, "namm") for name in ("smollm2", "some/backbone"))
    assert own is not None and own.linear is not None and lent is not None and lent.linear is None
    assert resolve_eviction_weights("auto", "some/backbone", "linear") is None


def test_a_backbone_without_weights_is_refused(plain_folder: Path) -> None:
    with pytest.raises(InputError, match="no scores for this backbone: make them with `hiermem calibrate`"):
        HierMemModel.from_pretrained(plain_folder, settings(policy="linear"))
    model = HierMemModel(settings(8, 32, policy="linear"), backbone(), tokenizer())
    with pytest.raises(InputError, match="no scores for this backbone"):
        model.read(text_of(80), progress=False)


def test_a_saved_model_scores_as_before(plain_folder: Path, tmp_path: Path) -> None:
    evictor(fitted()).save(tmp_path / "evictor")
    named = {"evictor": str(tmp_path / "evictor")}
    model = HierMemModel.from_pretrained(
        plain_folder, HierMemConfig(**{**settings(policy="linear").settings(), **named})
    )
    assert model.config.working.head_shares == [[1.0, 3.0]] * 3
    memory = model.read(text_of(80), progress=False)
    memory.save(tmp_path / "m.hmem")
    model.save_pretrained(tmp_path / "model")
    for config in (None, settings(policy="linear")):
        again = HierMemModel.from_pretrained(tmp_path / "model", config)
        assert again.scorer.digest == model.scorer.digest
        assert again.config.working.head_shares == [[1.0, 3.0]] * 3
    assert MemoryState.load(tmp_path / "m.hmem", again).fingerprint == memory.fingerprint
    window = HierMemModel.from_pretrained(tmp_path / "model", settings(policy="window"))
    assert window.config.working.policy == "window"
    with torch.no_grad():
        again.scorer.weights[0].add_(1)
    with pytest.raises(MemoryIncompatibleError, match="this model's network"):
        MemoryState.load(tmp_path / "m.hmem", again)


def test_the_command_makes_what_the_policy_needs(wide_model: Path, tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text("the captain of the ship sailed north. " * 60, "utf-8")
    words = ("--model", wide_model, "--policy", "linear")
    refused = run("read", book, "--out", tmp_path / "m.hmem", *words)
    assert_refused(refused, "has no scores for this backbone")
    sizes = ("--tokens", 100, "--texts", 2)
    made = run("calibrate", book, "--model", wide_model, "--out", tmp_path / "e", *sizes)
    assert made.returncode == 0, made.stderr
    done = run("read", book, "--out", tmp_path / "m.hmem", *words, "--evictor", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert run("verify", tmp_path / "m.hmem").returncode == 0


def test_features_are_counted_as_they_are_made() -> None:
    for family in FAMILIES:
        model = fitted(family)
        assert isinstance(model.scorer, LinearScorer)
        for geometry, weight in zip(model.adapter.geometries, model.scorer.weights, strict=True):
            assert weight.shape == (geometry.heads, num_features(geometry))
