"""Evictors on disk, and the models that take them over."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from readers import backbone, lively_namm, reader, settings, text_of, tokenizer, uneven

from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.config import HierMemConfig
from hiermem.errors import MemoryIncompatibleError
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks import needles
from hiermem.eviction_weights import FILE, EvictionWeights, is_evolved, resolve_eviction_weights
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel


@pytest.fixture
def plain_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    backbone().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def made() -> EvictionWeights:
    network = lively_namm()
    return EvictionWeights(uneven(reader()), network.state_dict(), network.config, {"made_by": "a test"})


def test_an_evictor_comes_back_the_same(tmp_path: Path) -> None:
    made().save(tmp_path)
    again = EvictionWeights.load(tmp_path)
    assert again.digest == made().digest
    assert (again.namm, again.origin) == (made().namm, {"made_by": "a test"})
    assert [list(row) for row in again.shares or ()] == [list(row) for row in made().shares or ()]
    assert all(torch.equal(again.network[name], t) for name, t in (made().network or {}).items())  # type: ignore[index]


def test_any_change_changes_the_digest() -> None:
    network = made().network
    assert network is not None
    other = {name: tensor + (name == "score.bias") for name, tensor in network.items()}
    evictors = [made(), EvictionWeights(made().shares), EvictionWeights(None, network, made().namm)]
    evictors.append(EvictionWeights(made().shares, other, made().namm))
    assert len({evictor.digest for evictor in evictors}) == 4


def test_a_model_takes_an_evictor_over_and_saves_it(plain_folder: Path, tmp_path: Path) -> None:
    made().save(tmp_path / "evictor")
    config = HierMemConfig(**{**settings(policy="namm").settings(), "evictor": str(tmp_path / "evictor")})
    model = HierMemModel.from_pretrained(plain_folder, config)
    (tmp_path / "evictor" / FILE).unlink()
    model.save_pretrained(tmp_path / "saved")
    for taken in (model, HierMemModel.from_pretrained(tmp_path / "saved")):
        assert taken.config.evictor == "none"
        assert taken.config.namm == made().namm
        assert taken.config.working.head_shares == [list(row) for row in made().shares or ()]
        for name, tensor in (made().network or {}).items():
            assert torch.equal(taken.namm.state_dict()[name].cpu(), tensor)


@pytest.mark.parametrize("evolved", [True, False])
def test_auto_is_what_a_saved_model_has_evolved(plain_folder: Path, tmp_path: Path, evolved: bool) -> None:
    """Settings of its network with it; a network that was never evolved gives way to the one that ships."""
    made().save(tmp_path / "evictor")
    name = str(tmp_path / "evictor") if evolved else "none"
    config = HierMemConfig(**{**settings(policy="namm").settings(), "evictor": name})
    HierMemModel.from_pretrained(plain_folder, config).save_pretrained(tmp_path / "saved")
    asked = HierMemConfig(**{**settings(policy="namm").settings(), "evictor": "auto"})
    model = HierMemModel.from_pretrained(tmp_path / "saved", asked)
    expected = made() if evolved else resolve_eviction_weights("auto", "some/backbone", "namm")
    assert expected is not None and model.config.namm == expected.namm
    shares = None if expected.shares is None else [list(row) for row in expected.shares]
    assert model.config.working.head_shares == shares
    for name, tensor in (expected.network or {}).items():
        assert torch.equal(model.namm.state_dict()[name].cpu(), tensor)
    other = EvictionWeights(None, lively_namm(8).state_dict(), lively_namm(8).config)
    other.save(tmp_path / "other")  # what is asked for by name goes before what was saved
    named = HierMemConfig(**{**asked.settings(), "evictor": str(tmp_path / "other")})
    assert HierMemModel.from_pretrained(tmp_path / "saved", named).config.namm == other.namm
    model.save_pretrained(tmp_path / "again")
    again = HierMemModel.from_pretrained(tmp_path / "again")
    assert again.fingerprint() == model.fingerprint()


def test_shares_that_were_given_stay(plain_folder: Path, tmp_path: Path) -> None:
    made().save(tmp_path)
    own = [[1.0, 2.0]] * 3
    config = HierMemConfig(**{**settings(head_shares=own).settings(), "evictor": str(tmp_path)})
    assert HierMemModel.from_pretrained(plain_folder, config).config.working.head_shares == own


def test_a_memory_stays_with_the_network_that_pruned_it(tmp_path: Path) -> None:
    model = reader(config=settings(policy="namm"))
    memory = model.read(text_of(80), progress=False)
    memory.save(tmp_path / "m.hmem")
    other = copy.deepcopy(model)
    assert MemoryState.load(tmp_path / "m.hmem", other).fingerprint == memory.fingerprint
    with torch.no_grad():
        other.namm.score.bias += 1
    with pytest.raises(MemoryIncompatibleError, match="this model's network"):
        MemoryState.load(tmp_path / "m.hmem", other)
    with pytest.raises(MemoryIncompatibleError):
        other.read(text_of(5), memory)
    reader(config=settings(policy="window")).read(text_of(80), progress=False).save(tmp_path / "w.hmem")
    MemoryState.load(tmp_path / "w.hmem", other)  # nothing in it depends on a network


def test_auto_is_for_namm_alone() -> None:
    for policy in ("window", "attention", "none"):
        assert resolve_eviction_weights("auto", "smollm2", policy) is None
    assert resolve_eviction_weights("none", "smollm2", "namm") is None


def test_the_bundled_backbone_has_an_evictor_of_its_own_and_lends_its_network() -> None:
    own, lent = (
        resolve_eviction_weights("auto", "smollm2", "namm"),
        resolve_eviction_weights("auto", "some/backbone", "namm"),
    )
    assert own is not None and own.shares is not None and own.network is not None
    assert [len(row) for row in own.shares] == [3] * 30
    assert lent is not None and lent.shares is None and lent.network is not None
    assert all(torch.equal(lent.network[name], tensor) for name, tensor in own.network.items())
    by_name = resolve_eviction_weights("smollm2", "some/backbone", "window")
    assert by_name is not None and by_name.digest == own.digest


def test_shares_alone_score_with_the_network_that_ships(
    plain_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights as `hiermem calibrate` writes them: an untrained network would keep the newest tokens alone."""
    calibrated, ships = (
        EvictionWeights(uneven(reader())),
        resolve_eviction_weights("smollm2", "smollm2", "namm"),
    )
    assert ships is not None and ships.network is not None and ships.lender is None
    calibrated.save(tmp_path)
    for backbone_name in ("smollm2", "some/backbone"):
        found = resolve_eviction_weights(str(tmp_path), backbone_name, "namm")
        assert found is not None and found.network is not None
        assert (found.lender, found.namm) == ("smollm2", ships.namm)
        assert found.digest not in (calibrated.digest, ships.digest)
    window = resolve_eviction_weights(str(tmp_path), "smollm2", "window")  # which needs no network
    assert window is not None and window.network is None and window.digest == calibrated.digest
    config = HierMemConfig(**{**settings(policy="namm").settings(), "evictor": str(tmp_path)})
    model = HierMemModel.from_pretrained(plain_folder, config)
    assert model.config.working.head_shares == [list(row) for row in calibrated.shares or ()]
    assert all(torch.equal(model.namm.state_dict()[n].cpu(), t) for n, t in ships.network.items())
    assert "the network that ships for smollm2" in caplog.text


def test_a_backbone_at_hand_takes_an_evictor_over_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evolved = reader(config=settings(policy="namm")).memory_parameters()
    assert is_evolved(evolved) and "ships for smollm2" in caplog.text
    for evictor, policy in (("auto", "window"), ("none", "namm")):
        config = HierMemConfig(**{**settings(policy=policy).settings(), "evictor": evictor})
        assert not is_evolved(reader(config=config).memory_parameters())
    made().save(tmp_path)
    model = reader(config=HierMemConfig(**{**settings(policy="namm").settings(), "evictor": str(tmp_path)}))
    assert model.config.evictor == "none" and model.config.namm == made().namm
    with pytest.raises(ValueError, match="no evictor at"):
        reader(config=HierMemConfig(**{**settings().settings(), "evictor": str(tmp_path / "nowhere")}))


def test_a_missing_evictor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no evictor at .*nowhere"):
        resolve_eviction_weights(str(tmp_path / "nowhere"), "smollm2", "namm")


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hiermem.eviction_weights.FORMAT_VERSION", 99)
    made().save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="upgrade hiermem"):
        EvictionWeights.load(tmp_path)


def test_a_head_may_have_no_share_at_all(tmp_path: Path) -> None:
    """As calibration finds where none of its tokens is among those that are looked at most."""
    EvictionWeights(shares=[[0.0, 1.5], [1.0, 1.5]]).save(tmp_path)
    assert EvictionWeights.load(tmp_path).shares == [[0.0, 1.5], [1.0, 1.5]]
    EvictionWeights(shares=[[0.0, 0.0]]).save(tmp_path)
    with pytest.raises(ValueError, match="not all 0"):
        EvictionWeights.load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_evictor_is_refused(tmp_path: Path, damage: bytes | None) -> None:
    made().save(tmp_path)
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[: len(data) // 2] if damage is None else damage)
    with pytest.raises(ValueError, match="damaged"):
        EvictionWeights.load(tmp_path)


def endless(folder: Path) -> None:
    (folder / FILE).unlink()
    os.mkfifo(folder / FILE)


def other_network(folder: Path) -> None:
    network = made().network or {}
    EvictionWeights(None, {name: tensor[..., None] for name, tensor in network.items()}, made().namm).save(
        folder
    )


def not_finite(folder: Path) -> None:
    network = made().network or {}
    EvictionWeights(None, {name: tensor * torch.nan for name, tensor in network.items()}, made().namm).save(
        folder
    )


def wrong_shares(folder: Path) -> None:
    EvictionWeights([[1.0, -2.0]]).save(folder)


def many_dimensions(folder: Path) -> None:
    header = json.dumps({"shares": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()
    (folder / FILE).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)


@pytest.mark.parametrize("change", [endless, other_network, not_finite, wrong_shares, many_dimensions])
def test_an_evictor_that_makes_no_sense_is_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    made().save(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match="evictor") as found:
        EvictionWeights.load(tmp_path)
    assert "\n" not in str(found.value)


@pytest.mark.real
def test_the_bundled_evictor_keeps_what_a_window_loses() -> None:
    """Codes hidden in the embedded document, a quarter kept: most of what the window forgets is found."""
    found = {}
    for policy in ("namm", "window"):
        model = HierMemModel.from_pretrained(
            "smollm2", HierMemConfig.preset("full").with_working(policy=policy)
        )
        text = BUNDLED_DOCUMENTS["python-reference"]()[:40_000]
        task = needles.Needles(data=Path("books"), keep=0.25, length=1000, limit=3)
        found[policy] = task.measure(model, {"reference": text}, ResultLog(None, {"task": "needles"}))
    nll = {policy: result["metrics"]["nll"] for policy, result in found.items()}
    assert nll["namm"] < nll["window"] / 2
    assert found["namm"]["metrics"]["kept"] <= 0.25
