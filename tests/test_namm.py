"""NAMM: spectrogram, network and selection against slow, literal versions of the paper's equations."""

import math
from typing import Any

import pytest
import torch
from readers import backbone, ids_of, lively_namm, over, settings
from test_policies import eager_attention
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.memory.policies import CacheStats, Namm, NammConfig, NammPolicy
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel

# ---- the slow reference


def slow_averages(matrix: Tensor, groups: int, config: SpectrogramConfig) -> Tensor:
    """Moving averages of every token's spectrogram from one full attention matrix ``[H, N, N]``."""
    heads, length, _ = matrix.shape
    group = matrix.view(groups, heads // groups, length, length).mean(1)
    window = torch.hann_window(config.width, periodic=True)
    averages = torch.zeros(groups, length, config.bins)
    for end in range(config.hop, length + 1, config.hop):
        for head in range(groups):
            for token in range(length):
                signal = torch.zeros(config.width)
                for place in range(config.width):
                    query = end - config.width + place
                    signal[place] = group[head, query, token] if query >= 0 else 0.0
                magnitude = torch.fft.rfft(signal * window).abs()
                old = averages[head, token]
                averages[head, token] = config.kept * old + (1 - config.kept) * magnitude
    return averages


def slow_scores(network: Namm, ages: list[int], average: Tensor) -> Tensor:
    """Scores ``[T]`` of one head's tokens, oldest first, written out token by token."""
    config, weights = network.config, dict(network.named_parameters())
    rows = []
    for age, features in zip(ages, average, strict=True):
        angles = [age / 50000 ** (i / config.frequencies) for i in range(config.frequencies)]
        waves = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        rows.append(torch.cat((torch.tensor(waves), (features - network.mean) / network.deviation)))
    looks = [weights["look.weight"] @ row + weights["look.bias"] for row in rows]
    scores = []
    for i, row in enumerate(rows):
        query = looks[i][: config.hidden]
        newer = [look.split(config.hidden)[1:] for look in looks[i:]]
        logits = torch.stack([query @ key for key, _ in newer]) / config.hidden**0.5
        looked = sum(p * value for p, (_, value) in zip(logits.softmax(0), newer, strict=True))
        shift, scale = (weights["change.weight"] @ looked + weights["change.bias"]).chunk(2)
        scores.append(weights["score.weight"] @ (row * (1 + scale) + shift) + weights["score.bias"])
    return torch.cat(scores)


def new_model(
    hop: int, threshold: float | None = None, family: str = "llama", **working: Any
) -> HierMemModel:
    model = over(backbone(family), policy="namm", **{"budget": 64, "update_interval": 64, **working})
    model.namm = lively_namm(hop, threshold)
    return model


@torch.no_grad()
def memory_after(model: HierMemModel, ids: Tensor, parts: list[int]) -> WorkingMemory:
    memory = model.new_working_memory(model.config.working)
    for part in ids.split(parts, dim=1):
        model.adapter.read_chunk(memory, part, [part.shape[1]])
    return memory


# ---- the spectrogram


@pytest.mark.parametrize("hop", [4, 8, 16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt-neox"])
def test_averages_are_those_of_full_attention_matrices(family: str, hop: int) -> None:
    ids, model = ids_of(53), new_model(hop, family=family)
    matrices = eager_attention(family, ids)
    for parts in ([53], [8] * 6 + [5], [1] * 53, [7, 30, 16]):
        memory = memory_after(model, ids, parts)
        for layer, matrix in zip(memory.caches, matrices, strict=True):
            average = layer.state["average"][0]
            slow = slow_averages(matrix, average.shape[0], model.namm.config.spectrogram)
            torch.testing.assert_close(average, slow[:, -average.shape[1] :], atol=1e-5, rtol=1e-4)


def test_a_frame_is_a_short_time_fourier_transform() -> None:
    """The published setting against `torch.stft`, whose frames begin 16 zeros before the text."""
    config = SpectrogramConfig()
    matrix = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)).tril()
    signal = torch.cat((torch.zeros(64, 16), matrix[0].T), dim=1)
    window = torch.hann_window(32, periodic=True)
    frames = torch.stft(signal, 32, 16, window=window, center=False, return_complex=True).abs()
    assert frames.shape == (64, config.bins, 4)
    weights = torch.tensor([(1 - 0.99**16) * 0.99 ** (16 * (3 - t)) for t in range(4)])
    torch.testing.assert_close(slow_averages(matrix, 1, config)[0], frames @ weights, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_row_that_is_left_goes_on_as_if_it_had_been_alone() -> None:
    """Rows out of step keep tails of unlike lengths."""
    model, ids = new_model(4), ids_of(50, rows=2)
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, 17:] = 0
    memory = model(ids[:, :20], attention_mask=mask).past_key_values.memory
    for row, start in ((0, 20), (1, 17)):
        own = memory.copy()
        own.select_rows(torch.tensor([row]))
        model.read_ids(own, ids[row : row + 1, start:])
        alone = model(ids[row : row + 1]).past_key_values.memory
        for layer, expected in zip(own.caches, alone.caches, strict=True):
            average, real = layer.state["average"][0], layer.positions[0] >= 0
            torch.testing.assert_close(
                average[real], expected.state["average"][0].flatten(0, 1), atol=1e-5, rtol=1e-4
            )


@pytest.mark.parametrize("hop", [4, 16])
def test_padded_rows_have_the_averages_of_the_rows_alone(hop: int) -> None:
    model, ids = new_model(hop), ids_of(40, rows=3)
    mask = torch.ones_like(ids)
    mask[1, 21:], mask[2, :13] = 0, 0
    with torch.no_grad():
        batch = model(ids, attention_mask=mask).past_key_values.memory
        singles = [
            model(row[None, keep.bool()]).past_key_values.memory for row, keep in zip(ids, mask, strict=True)
        ]
    for row, single in enumerate(singles):
        for layer, alone in zip(batch.caches, single.caches, strict=True):
            real = layer.positions[row, 0] >= 0
            average = layer.state["average"][row][:, real]
            torch.testing.assert_close(average, alone.state["average"][0], atol=1e-5, rtol=1e-4)


# ---- the network


def test_the_published_network_has_4172_parameters_and_starts_at_zero() -> None:
    network = Namm(NammConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 4172
    assert not network(torch.arange(5).flip(0)[None], torch.rand(1, 5, 17)).any()


def test_scores_are_those_of_the_equations() -> None:
    network, draw = lively_namm(), torch.Generator().manual_seed(1)
    network.mean.uniform_(generator=draw)
    network.deviation.uniform_(0.5, 2.0, generator=draw)
    ages = torch.randperm(90, generator=draw)[: 3 * 13].view(3, 13).sort(dim=1, descending=True).values
    average = torch.rand(3, 13, network.config.spectrogram.bins, generator=draw)
    with torch.no_grad():
        fast = network(ages, average)
        for row in range(3):
            slow = slow_scores(network, ages[row].tolist(), average[row])
            torch.testing.assert_close(fast[row], slow, atol=1e-5, rtol=1e-4)


def test_empty_slots_change_no_score() -> None:
    policy, draw = NammPolicy(sinks=1, network=lively_namm()), torch.Generator().manual_seed(2)
    positions, seen = torch.tensor([[[0, 3, 4, 7, 8, 11]]]), torch.tensor([[[12]]])
    average = torch.rand(1, 1, 6, policy.network.config.spectrogram.bins, generator=draw)
    whole = policy.protected_scores(CacheStats(positions, seen, {"average": average}))
    place = torch.tensor([1, 2, 5, 6, 7, 9])
    holed = torch.full((1, 1, 10), -1).index_copy(2, place, positions)
    states = torch.full((1, 1, 10, average.shape[3]), 7.0).index_copy(2, place, average)
    scores = policy.protected_scores(CacheStats(holed, seen, {"average": states}, ragged=True))
    torch.testing.assert_close(scores[..., place], whole)
    assert (scores[holed < 0] == -torch.inf).all()


# ---- selection


@pytest.mark.parametrize("hop", [4, 16])
@pytest.mark.parametrize("budget", [6, 20, 64])
def test_every_head_keeps_what_the_slow_network_wants(hop: int, budget: int) -> None:
    """One decision after 32 tokens: sinks, the newest, and what scores 0 or more, the best of them."""
    model = new_model(hop, 0.0, budget=budget, recent_share=0.1, sinks=2, update_interval=32)
    ids = ids_of(32)
    memory, dropped = memory_after(model, ids, [20, 12]), 0
    for layer, matrix in zip(memory.caches, eager_attention("llama", ids), strict=True):
        averages = slow_averages(matrix, layer.positions.shape[1], model.namm.config.spectrogram)
        for head, average in enumerate(averages):
            with torch.no_grad():
                scores = slow_scores(model.namm, list(range(31, -1, -1)), average)
            scores[:2] = scores[32 - max(int(budget * 0.1), 1) :] = math.inf
            best = sorted(range(32), key=lambda token: (-float(scores[token]), -token))[:budget]
            wanted = sorted(token for token in best if scores[token] >= 0)
            held = layer.positions[0, head]
            assert held[held >= 0].tolist() == wanted
            dropped += 32 - len(wanted)
    assert dropped


def test_an_untrained_network_keeps_the_window() -> None:
    configs = [settings(policy=policy, budget=24).settings() for policy in ("namm", "window")]
    models = [HierMemModel(HierMemConfig(**{**own, "evictor": "none"}), backbone()) for own in configs]
    ours, window = (memory_after(model.eval(), ids_of(150), [16] * 9 + [6]) for model in models)
    for layer, other in zip(ours.caches, window.caches, strict=True):
        assert torch.equal(layer.positions, other.positions)


def test_the_newest_token_stays_without_any_share_for_recent_ones() -> None:
    model = new_model(4, 1e9, recent_share=0.0, sinks=0, update_interval=16)
    memory = memory_after(model, ids_of(32), [16, 16])
    assert all(layer.positions.tolist() == [[[31]] * layer.positions.shape[1]] for layer in memory.caches)
