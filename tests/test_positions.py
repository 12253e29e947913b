"""Frames: keys turn exactly, positions stay within the trained range, distances are true while they fit."""

import math

import pytest
import torch
from families import RANGE, tiny
from hypothesis import given
from hypothesis import strategies as st
from readers import ids_of, over
from torch import Tensor

from hiermem.memory.cache.frames import FRAME_STEP_SHARE, frame_start
from hiermem.memory.cache.rope import Rotary


@st.composite
def frames(draw: st.DrawFn) -> tuple[int, int, int]:
    """(seen, interval, trained range) as a working memory may have them."""
    trained = draw(st.integers(1, 5000))
    return draw(st.integers(0, 100_000)), draw(st.integers(1, trained)), trained


def step_of(interval: int, trained: int) -> int:
    """How far a frame moves at most when it moves."""
    return min(max(trained // FRAME_STEP_SHARE, interval), max(trained - interval, 1))


def slow_turn(keys: Tensor, shift: Tensor, rotary: Rotary) -> Tensor:
    """Each pair of dimensions as a complex number, times e^(i shift frequency)."""
    out, count = keys.double().clone(), rotary.frequencies.numel()
    for index, frequency in enumerate(rotary.frequencies.tolist()):
        a, b = (2 * index, 2 * index + 1) if rotary.interleaved else (index, index + count)
        pair = torch.complex(keys[..., a].double(), keys[..., b].double())
        turned = pair * torch.polar(torch.ones(()).double(), shift.double() * frequency)
        out[..., a], out[..., b] = turned.real, turned.imag
    return out


# ---- the frame


@given(frames())
def test_frame_positions_lie_within_the_trained_range(case: tuple[int, int, int]) -> None:
    seen, interval, trained = case
    start = frame_start(seen, interval, trained)
    first = seen // interval * interval
    assert first - start >= 0
    assert first + interval - 1 - start < trained


@given(frames())
def test_frames_move_forward_and_only_between_intervals(case: tuple[int, int, int]) -> None:
    seen, interval, trained = case
    first = seen // interval * interval
    assert {frame_start(at, interval, trained) for at in (first, seen, first + interval - 1)} == {
        frame_start(seen, interval, trained)
    }
    assert frame_start(seen + interval, interval, trained) >= frame_start(seen, interval, trained)


@given(frames())
def test_a_short_document_is_read_where_it_stands(case: tuple[int, int, int]) -> None:
    seen, interval, trained = case
    if (seen // interval + 1) * interval <= trained:
        assert frame_start(seen, interval, trained) == 0


@given(frames(), st.integers(0, 100_000))
def test_distances_are_true_while_they_fit(case: tuple[int, int, int], distance: int) -> None:
    seen, interval, trained = case
    start, key = frame_start(seen, interval, trained), seen - distance
    if key < 0:
        return
    shown = (seen - start) - max(key - start, 0)
    assert shown <= distance
    if distance <= trained - step_of(interval, trained) - interval + 1:
        assert shown == distance
    if shown < distance:  # held at the far edge of the frame
        assert shown == seen - start


@pytest.mark.parametrize("policy", ["none", "window", "keen", "lively"])
@pytest.mark.parametrize("interval", [1, 5, 16, 64])
def test_what_a_model_sees_of_distances(policy: str, interval: int) -> None:
    model = over(tiny("llama"), 8, policy=policy, update_interval=interval, budget=30, sinks=3)
    memory = model.new_working_memory(model.config.working, 1)
    exact = RANGE - step_of(interval, RANGE) - interval + 1
    for token in ids_of(300)[0].split(3):
        with torch.no_grad():
            model.read_ids(memory, token[None])
        query = memory.num_tokens[0] - 1
        if query % interval == interval - 1:
            continue  # the frame has already moved on to the next interval
        position = query - frame_start(query, interval, RANGE)
        for layer in memory.caches:
            assert layer.positions is not None and layer.position_ids is not None
            real = layer.positions >= 0
            true, frames = query - layer.positions[real], layer.position_ids[real]
            shown = position - frames
            assert (frames >= 0).all() and (frames < RANGE).all()
            assert torch.equal(shown[true <= exact], true[true <= exact].int())
            assert ((shown == true) | (frames == 0)).all()


def test_no_backbone_is_shown_a_position_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in padding either: GPT-2's table of positions would be left."""
    model = over(tiny("gpt2"), 8, policy="window", budget=20)
    shown: list[Tensor] = []
    handle = model.backbone.transformer.wpe.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    mask = torch.ones(3, 200, dtype=torch.int64)
    mask[0, :139], mask[1, 70:] = 0, 0
    with torch.no_grad():
        model(ids_of(200, rows=3), attention_mask=mask)
    handle.remove()
    assert min(int(p.min()) for p in shown) >= 0 and max(int(p.max()) for p in shown) < RANGE


def test_compact_positions_have_no_gaps() -> None:
    model = over(tiny("llama"), 8, policy="window", positions="compact", budget=20)
    memory = model.new_working_memory(model.config.working, 1)
    with torch.no_grad():
        for part in ids_of(208)[0].split(16):
            model.read_ids(memory, part[None])
            for layer in memory.caches:
                assert layer.position_ids is not None
                assert torch.equal(layer.position_ids[0, 0], torch.arange(layer.tokens, dtype=torch.int32))
    assert memory.frames.next_frame == (20,)


def test_absolute_positions_count_on_for_ever() -> None:
    model = over(tiny("llama"), 8, policy="keen", positions="absolute", budget=20)
    memory = model.new_working_memory(model.config.working, 1)
    with torch.no_grad():
        model.read_ids(memory, ids_of(208))
    for layer in memory.caches:
        assert layer.position_ids is not None and layer.positions is not None
        assert torch.equal(layer.position_ids, layer.positions.int())
        assert int(layer.position_ids.max()) == 207


# ---- turning keys


@pytest.mark.parametrize("interleaved", [False, True])
def test_turning_rotates_each_pair(interleaved: bool) -> None:
    rotary = Rotary(torch.tensor([1.0, 0.3, 0.01]), interleaved)
    keys, shift = torch.randn(2, 3, 5, 10), torch.randint(-200, 200, (2, 3, 5))
    turned = rotary.turn(keys, shift)
    torch.testing.assert_close(turned.double(), slow_turn(keys, shift, rotary), atol=1e-4, rtol=1e-4)
    assert torch.equal(turned[..., 6:], keys[..., 6:])  # what does not rotate stays as it is


@given(st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_rotations_add_up(one: int, other: int) -> None:
    rotary = Rotary(10000.0 ** -(torch.arange(4) / 4))
    keys = torch.randn(1, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    twice = rotary.turn(rotary.turn(keys, torch.full((1, 1, 3), one)), torch.full((1, 1, 3), other))
    once = rotary.turn(keys, torch.full((1, 1, 3), one + other))
    torch.testing.assert_close(twice, once, atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_adds_up_slowly(dtype: torch.dtype) -> None:
    """A key moves about `FRAME_STEP_SHARE` times before it rests at the far edge; here it moves 100 times."""
    rotary = Rotary(10000.0 ** -(torch.arange(32) / 32))
    keys = torch.randn(1, 1, 200, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    moved, step = keys, torch.full((1, 1, 200), -37)
    unit = torch.finfo(dtype).eps / 2  # half a unit in the last place, per rounding
    for count in range(1, 101):
        moved = rotary.turn(moved, step)
        exact = slow_turn(keys, count * step, rotary)
        error = (moved.double() - exact).norm() / exact.norm()
        assert error < 2 * unit * math.sqrt(count)  # roundings are independent, so they add as a random walk
    assert rotary.turn(keys, 0 * step).equal(keys)
