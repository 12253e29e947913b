"""Recency ratios against full attention matrices, and the groups that are chosen by them."""

import json
import sys
from pathlib import Path

import pytest
import torch
from commands import assert_refused, run
from readers import ids_of, reader, settings
from test_policies import eager_attention

from hiermem.errors import InputError
from hiermem.training.recency import Ratios, RecencyConfig, choose, heat_map, mean, overlap, recency_ratios

CONFIG = RecencyConfig(tokens=48, window=6, sinks=2)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "phi3"])
@pytest.mark.parametrize("chunk", [8, 48])
def test_ratios_are_those_of_full_attention_matrices(family: str, chunk: int) -> None:
    ids = ids_of(48)
    measured = recency_ratios(reader(family, settings(chunk=chunk)).reader, ids[0].tolist(), CONFIG)
    place = torch.arange(48)
    near = (place[:, None] - place < 6) & (place <= place[:, None])
    for layer, matrix in enumerate(eager_attention(family, ids)):
        rows = matrix[:, 8:]
        local = (rows * near[8:]).sum(-1)
        torch.testing.assert_close(measured.all[layer], local.mean(1), atol=1e-5, rtol=1e-4)
        without = (local / rows[..., 2:].sum(-1)).mean(1)
        torch.testing.assert_close(measured.without_sinks[layer], without, atol=1e-5, rtol=1e-4)
    assert measured.of_groups.shape == (len(measured.all), measured.groups)


def test_the_highest_groups_are_chosen_and_a_tie_always_alike() -> None:
    of_groups = torch.tensor([[0.2, 0.9], [0.5, 0.9], [0.5, 0.1]])
    assert choose(of_groups, share=1 / 3) == [[0, 1], [1, 1]]
    assert choose(of_groups, share=1 / 2) == [[0, 1], [1, 0], [1, 1]]
    assert choose(of_groups, threshold=0.5) == [[0, 1], [1, 0], [1, 1], [2, 0]]
    assert choose(of_groups, share=0.0) == [] and len(choose(of_groups, share=1.0)) == 6
    for wrong in ({}, {"share": 0.5, "threshold": 0.5}, {"share": 1.5}):
        with pytest.raises(InputError, match="either a share or a threshold"):
            choose(of_groups, **wrong)


def test_overlap_counts_what_both_have() -> None:
    assert overlap([[0, 1], [1, 1]], [[1, 1], [2, 0]]) == pytest.approx(1 / 3)
    assert overlap([], []) == 1.0


def test_groups_are_drawn(tmp_path: Path) -> None:
    ratios = Ratios(torch.rand(3, 4), torch.rand(3, 4), 2)
    heat_map(mean([ratios, ratios]), [[0, 1], [2, 0]], tmp_path / "heads.png")
    assert (tmp_path / "heads.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="cannot be written"):
        heat_map(ratios, [], tmp_path / "none" / "heads.png")


def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text(f"{name} " * 100, "utf-8")
    texts = ("--text", str(tmp_path / "one"), "--text", str(tmp_path / "other"))
    sizes = ("--model", str(tiny_model), "--tokens", "60", "--window", "8")
    done = run("heads", *texts, *sizes, "--share", "0.5", "--plot", str(tmp_path / "map.png"), "--json")
    result = json.loads(done.stdout)
    layers, heads = len(result["ratios"]), len(result["ratios"][0])
    assert len(result["ratios_with_sinks"]) == layers and len(result["selected"]) >= 1 and heads > 1
    assert 0 <= result["overlap"] <= 1 and (tmp_path / "map.png").exists()
    again = run("heads", *texts, *sizes, "--share", "0.5", "--json")
    assert json.loads(again.stdout) == result
    assert_refused(run("heads", *texts, *sizes, "--share", "0.5", "--threshold", "0.5"), "give one of them")
    assert_refused(run("heads", *texts, "--model", str(tiny_model), "--tokens", "50"), "longer text")
    assert_refused(run("heads", *texts, "--model", str(tiny_model), "--tokens", "4000"), "lower --tokens")


def test_a_picture_without_matplotlib_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text("Some text.", "utf-8")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    done = run("heads", "--text", tmp_path / "book.txt", "--plot", tmp_path / "map.png")
    assert_refused(done, "Plots need matplotlib")
