"""Calibration: what a second reading looks at, against full attention matrices."""

from pathlib import Path

import pytest
import torch
from readers import ids_of, reader, settings
from test_policies import eager_attention

from hiermem.eviction_weights import EvictionWeights
from hiermem.training.calibration import CalibrationConfig, _received, _shares, calibrate
from hiermem.training.linear_fit import LinearFit


@pytest.mark.parametrize("first", [[], [1]])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt-neox"])
def test_a_second_reading_is_seen_as_full_attention_shows_it(family: str, first: list[int]) -> None:
    piece, between, n = ids_of(25)[0].tolist(), [5, 6, 7], len(first)
    model = reader(family, settings(chunk=8))
    received = _received(model.reader, piece, between, first, LinearFit(model.adapter.geometries))
    whole = torch.tensor([[*first, *piece, *between, *piece]])
    distance = torch.arange(n + 53).unsqueeze(1) - torch.arange(n, n + 25)
    layers = zip(received, eager_attention(family, whole), model.adapter.geometries, strict=True)
    for ours, matrix, geometry in layers:
        seen = matrix.unflatten(0, (ours.shape[0], -1))[..., n : n + 25]
        if geometry.window is None:
            expected = seen[:, :, n + 28 :].amax((1, 2))
        else:  # an eighth of the 24 tokens is near by
            expected = seen.masked_fill(distance < 3, 0.0).amax((1, 2))
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
        assert (ours > 0).all()


def test_a_backbone_with_sliding_windows_is_calibrated_in_every_layer() -> None:
    model, ids = reader("gemma3"), ids_of(200)[0].tolist()
    model.adapter.trained_range = 512
    found = calibrate(model.reader, ids, CalibrationConfig(tokens=100, texts=2))
    assert all(weights.isfinite().all() and weights.any() for weights in found.linear)


def test_heads_share_what_is_looked_at_most() -> None:
    received = torch.zeros(2, 2, 8)
    received[0, 0] = 1.0
    received[1, 1, :4] = 2.0
    assert _shares(received, 4 / 32).tolist() == [[0, 0], [0, 0.5]]
    assert _shares(received, 12 / 32).tolist() == [[1.0, 0], [0, 0.5]]


def test_shares_are_even_in_the_mean_and_the_same_every_time(tmp_path: Path) -> None:
    model, ids = reader(), ids_of(80)[0].tolist()
    model.adapter.trained_range = 512
    config = CalibrationConfig(tokens=64, texts=1)
    shares = calibrate(model.reader, ids, config).shares
    assert sum(map(sum, shares)) == pytest.approx(6)
    assert shares == calibrate(model.reader, ids, config).shares
    EvictionWeights(shares).save(tmp_path)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"tokens": 10}, "at least 64"),
        ({"texts": 0}, "needs a text"),
        ({"kept": 1.0}, "between 0 and 1"),
        ({"power": 0.0}, "0..1"),
    ],
)
def test_bad_settings_are_explained(bad: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CalibrationConfig(**bad)  # type: ignore[arg-type]


def test_too_short_a_text_and_too_short_a_range_are_explained() -> None:
    with pytest.raises(ValueError, match="give a longer text"):
        calibrate(reader().reader, ids_of(70)[0].tolist(), CalibrationConfig(tokens=64, texts=2))
    with pytest.raises(ValueError, match="exceed the backbone's trained range"):
        calibrate(reader().reader, ids_of(70)[0].tolist(), CalibrationConfig(tokens=64, texts=1))
