"""Mamba heads: the scan is the recurrence; replaced heads read, carry, save and generate like any other."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import (
    assert_rows_are_singles,
    assert_same_working,
    backbone,
    ids_of,
    lively,
    reader,
    settings,
    text_of,
    tokenizer,
    tokens_of,
)
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig, MambaLayer
from hiermem.memory.mamba.scan import ScanInputs, scan, step_by_step
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.seal import SEAL
from hiermem.training.batches import Sample, collated
from hiermem.training.distillation import HeadObjective
from hiermem.training.parameters import freeze_all_but, trainable_parameters

SOME = [[0, 1], [2, 0], [2, 1]]
"""One group of the first layer, none of the second, all of the third."""

AHEAD = SummaryConfig(tokens=2, sensory=3, width=8, query="half")


def with_mamba(
    groups: list[list[int]] = SOME, summary: SummaryConfig | None = None, window: int = 6, **working: Any
) -> HierMemConfig:
    """A tiny configuration whose heads are replaced in part, and look at the first 2 and the last tokens."""
    own = settings(**working).settings()
    if summary is not None:
        own |= {"summary": summary, "segment": 16}
    return HierMemConfig(**{**own, "mamba": MambaConfig(groups=groups, taps=3, window=window, sinks=2)})


def isolated() -> HierMemConfig:
    """Segments over no cache, half of each read beforehand."""
    return with_mamba(summary=AHEAD, policy="forget", update_interval=16, positions="compact")


def replaced(config: HierMemConfig, family: str = "llama", seed: int = 0) -> HierMemModel:
    """A reader with random Mamba heads."""
    model, draw = reader(family, config, seed=seed), torch.Generator().manual_seed(4)
    for name, parameter in model.mamba.named_parameters():
        deviation = 0.02 if name.endswith(("decay", "scale")) else 0.2
        parameter.data += deviation * torch.randn(parameter.shape, generator=draw)
        if name.endswith("scale"):
            parameter.data += 4
    return lively(model) if config.summary.tokens else model


def assert_same_states(one: WorkingMemory, other: WorkingMemory, atol: float = 1e-5) -> None:
    """Equal states of the Mamba heads, up to rounding."""
    assert one.mamba is not None and other.mamba is not None
    named, same = one.mamba.tensors(), other.mamba.tensors()
    assert named.keys() == same.keys() and named
    for name, tensor in named.items():
        torch.testing.assert_close(tensor, same[name], atol=atol, rtol=1e-3, msg=name)


# ---- the scan


def inputs(tokens: int, seed: int = 0) -> list[Tensor]:
    """x, steps, rates, b, c and a state that ask for gradients."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(2, 3, tokens, 5), (2, 3, tokens), (3,), (2, 3, tokens, 4), (2, 3, tokens, 4), (2, 3, 4, 5)]
    made = [torch.randn(shape, generator=draw) for shape in shapes]
    made[1], made[2] = made[1].abs(), made[2].abs()
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 70])
def test_the_scan_is_the_recurrence_with_its_gradients(tokens: int) -> None:
    ours, plain = inputs(tokens), inputs(tokens)
    results = [
        scan(ScanInputs(*ours[:5]), ours[5], block=16),
        step_by_step(ScanInputs(*plain[:5]), plain[5]),
    ]
    for values, expected in zip(*results, strict=True):
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)
    for output, state in results:
        (output.square().sum() + state.sum()).backward()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cut", [1, 16, 29])
def test_the_scan_goes_on_from_its_state(cut: int) -> None:
    x, steps, rates, b, c, state = inputs(40)
    whole, last = scan(ScanInputs(x, steps, rates, b, c), state, block=16)
    outputs = []
    for part in (slice(0, cut), slice(cut, 40)):
        some = ScanInputs(x[:, :, part], steps[:, :, part], rates, b[:, :, part], c[:, :, part])
        output, state = scan(some, state, block=16)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 2), whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_scan_and_the_convolution_are_those_of_transformers_mamba2(groups: int) -> None:
    torch.manual_seed(0)
    config = Mamba2Config(
        hidden_size=16, num_heads=4, head_dim=8, n_groups=groups, state_size=8, expand=2, chunk_size=8
    )
    mixer = Mamba2Mixer(config, layer_idx=0)
    nn.init.normal_(mixer.dt_bias)
    nn.init.uniform_(mixer.A_log, -2, 1)
    heads, P, N, T, E = 4, 8, 8, 21, 32
    hidden = torch.randn(2, T, 16)
    results = []
    for plain in (True, False):
        given = hidden.clone().requires_grad_()
        if plain:
            output = mixer(given)
        else:
            gate, mixed, dt = mixer.in_proj(given).split((E, E + 2 * groups * N, heads), dim=-1)
            layer = MambaLayer(1, 1, MambaConfig(taps=config.conv_kernel))
            layer.convolution = nn.Parameter(mixer.conv1d.weight.squeeze(1).T[None])
            mixed, _ = layer._convolved(mixed.unsqueeze(1), torch.zeros(2, 1, 3, mixed.shape[-1]), None)
            mixed = F.silu(mixed.squeeze(1) + mixer.conv1d.bias)
            x, b, c = mixed.split((E, groups * N, groups * N), dim=-1)
            x = x.view(2, T, heads, P).transpose(1, 2)
            b, c = (
                t.view(2, T, groups, N).transpose(1, 2).repeat_interleave(heads // groups, 1) for t in (b, c)
            )
            steps = F.softplus(dt + mixer.dt_bias).transpose(1, 2)
            read = ScanInputs(x, steps, mixer.A_log.exp(), b, c)
            y, _ = scan(read, torch.zeros(2, heads, N, P), block=8)
            y = y + mixer.D.view(-1, 1, 1) * x
            output = mixer.out_proj(mixer.norm(y.transpose(1, 2).flatten(2), gate))
        output.square().sum().backward()
        results.append((output, given.grad))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


# ---- replaced heads


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3", "phi3", "gpt-neox", "opt", "gpt2"])
def test_whole_chunks_and_steps_are_the_same(family: str) -> None:
    ids = ids_of(60)
    with torch.no_grad():
        expected = replaced(with_mamba(policy="none", positions="absolute"), family)(ids)
        plain = reader(family, settings(policy="none", positions="absolute"))(ids)
        assert not torch.allclose(expected.logits, plain.logits, atol=0.1)
        for sizes in ([16, 16, 16, 12], [1] * 60, [7, 1, 31, 21]):
            model = replaced(with_mamba(policy="none", positions="absolute"), family)
            memory, logits = model.new_recurrent_memory(), []
            for some in ids.split(sizes, dim=1):
                logits.append(model.adapter.read_chunk(memory, some, [some.shape[1]], some.shape[1]))
            torch.testing.assert_close(torch.cat(logits, 1), expected.logits, atol=1e-4, rtol=1e-3)
            assert_same_states(memory, expected.past_key_values.memory, 1e-4)


@pytest.mark.parametrize("policy", ["window", "keen", "lively"])
def test_replaced_heads_keep_no_cache_and_the_others_are_untouched(policy: str) -> None:
    model, ids = replaced(with_mamba(policy=policy)), ids_of(150)
    with torch.no_grad():
        memory = model(ids).past_key_values.memory
        full = reader(config=settings(policy=policy))(ids).past_key_values.memory
    assert [(part.layer, part.heads) for part in memory.cache.head_groups] == [
        (0, slice(0, 1)),
        (1, slice(0, 2)),
    ]
    assert [cache.keys.shape[1] for cache in memory.caches] == [1, 2]
    first, same = tokens_of(memory.caches[0]), tokens_of(full.caches[0])
    if policy == "window":  # nothing before the first layer differs
        torch.testing.assert_close(first["keys"], same["keys"][:, :1])
    cached = sum(tensor.numel() for cache in memory.caches for tensor in tokens_of(cache).values())
    whole = sum(tensor.numel() for cache in full.caches for tensor in tokens_of(cache).values())
    if policy != "lively":
        assert cached == whole // 2
    states = sum(tensor.nbytes for tensor in memory.mamba.tensors().values())
    assert memory.nbytes == states + sum(
        t.nbytes for cache in memory.caches for t in tokens_of(cache).values()
    )


def test_groups_between_others_are_replaced_in_their_place() -> None:
    config = with_mamba([[1, 1], [1, 2]], window=0, policy="none", positions="absolute")
    model, ids = replaced(config, "gpt2"), ids_of(40)
    for layer in model.mamba.layers.values():
        layer.scale.data.fill_(-torch.inf)  # the heads say nothing
    weight = model.backbone.transformer.h[1].attn.c_proj.weight
    plain = reader("gpt2", settings(policy="none", positions="absolute"))
    plain.backbone.transformer.h[1].attn.c_proj.weight.data[8:24] = 0
    with torch.no_grad():
        for layer in model.mamba.layers.values():
            layer.skip.zero_()
        torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-4)
    assert weight[8:24].abs().sum() > 0
    assert model.new_recurrent_memory().cache.head_groups[1].heads == [0, 3]


@pytest.mark.parametrize(
    "config",
    [
        with_mamba(),
        with_mamba(window=0),
        with_mamba(policy="lively"),
        with_mamba(summary=replace(AHEAD, query="previous")),
        isolated(),
    ],
)
def test_a_padded_batch_reads_as_its_rows(config: HierMemConfig) -> None:
    assert_rows_are_singles(replaced(config))


@pytest.mark.parametrize(
    "config",
    [
        with_mamba(),
        with_mamba(positions="distance"),
        with_mamba(policy="lively"),
        with_mamba(summary=replace(AHEAD, query="previous")),
        isolated(),
    ],
)
def test_reading_goes_on_from_the_disk_as_if_it_had_not_stopped(
    config: HierMemConfig, tmp_path: Path
) -> None:
    model = replaced(config).double()
    model.mamba.float()
    # Isolated segments of random weights amplify rounding, that of the heads too, which are float32.
    atol = 1e-4 if config.working.policy == "segment_local" else 1e-5
    whole = model.read(text_of(60))
    ids = torch.cat([record.ids for record in whole.records()])
    resumed = model.new_memory()
    for end in (3, 5, 16, 30, 47, len(ids)):
        resumed = model.read(ids[resumed.tokens : end], resumed)
        resumed.save(tmp_path / "memory")
        resumed = MemoryState.load(tmp_path / "memory", model)
    assert_same_working(resumed.working, whole.working, atol)
    assert_same_states(resumed.working, whole.working, atol)
    other = reader(config=settings())
    with pytest.raises(MemoryIncompatibleError):
        MemoryState.load(tmp_path / "memory", other)
    assert (
        resumed.nbytes == whole.nbytes
        and model.ask(resumed, "Why was it silent at dawn?", max_new_tokens=8).sources
    )


def test_sensory_tokens_that_are_not_there_say_nothing() -> None:
    model, ids = replaced(isolated()), ids_of(40)
    with torch.no_grad():
        before = model(ids).logits
        model.backbone.get_input_embeddings().weight[0] += 1  # what stands for them
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-4)


def test_beams_and_samples_follow_their_states() -> None:
    model, ids = replaced(with_mamba()), ids_of(70)
    output = model.generate(
        ids, max_new_tokens=10, num_beams=3, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    with torch.no_grad():
        logits = model(output.sequences).logits[0, 69:-1].log_softmax(-1)
    score = logits.gather(1, output.sequences[0, 70:, None]).mean()
    torch.testing.assert_close(output.sequences_scores[0], score, atol=1e-4, rtol=1e-3)


def test_gradients_flow_through_states_and_stop_where_they_are_cut() -> None:
    model, ids = replaced(with_mamba(policy="window", update_interval=16)), ids_of(32)
    for cut in (False, True):
        memory = model.new_recurrent_memory()
        model.zero_grad()
        embeddings = model.backbone.get_input_embeddings()(ids).detach().requires_grad_()
        hook = model.backbone.get_input_embeddings().register_forward_hook(
            lambda _, given, __, own=embeddings: own[:, :16] if torch.equal(given[0], ids[:, :16]) else None
        )
        model.adapter.read_chunk(memory, ids[:, :16], [16])
        if cut:
            memory.detach()
        memory.cache.detach()
        model.adapter.read_chunk(memory, ids[:, 16:], [16]).square().sum().backward()
        hook.remove()
        assert (embeddings.grad is None or not embeddings.grad.any()) == cut


def head_outputs(model: HierMemModel, read: Callable[[], Any]) -> list[Tensor]:
    """Outputs of all heads of each layer while ``read`` reads one row, ``[T, H, D]``."""
    found: list[list[Tensor]] = [[] for _ in model.backbone.model.layers]
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given, own=own: own.append(given[0][0]))
        for layer, own in zip(model.backbone.model.layers, found, strict=True)
    ]
    read()
    for hook in hooks:
        hook.remove()
    return [torch.cat(own).detach().view(-1, 4, 8) for own in found]


def test_heads_learn_to_imitate_beside_an_unchanged_reading() -> None:
    model = reader(config=with_mamba())
    freeze_all_but(model, ("mamba",))
    objective, some = HeadObjective(model), collated([Sample("one", ids_of(60)[0].tolist(), [True] * 60)], 60)
    assert {name.split(".")[1] for name in trainable_parameters(objective)} == {"mamba"}
    attention = head_outputs(model, lambda: objective(some))
    for ours, plain in zip(attention, head_outputs(model, lambda: model.backbone(some.ids)), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    apart = []
    for layer, group in model.mamba.groups:
        config = with_mamba([[layer, group]], policy="none", positions="absolute")
        alone, heads = reader(config=config), slice(2 * group, 2 * group + 2)
        own = head_outputs(alone, lambda alone=alone: alone(some.ids))[layer][:, heads]
        target = attention[layer][:, heads]
        apart.append((own - target).square().sum() / target.square().sum())
    before = objective(some).total
    torch.testing.assert_close(before, torch.stack(apart).mean(), atol=1e-4, rtol=1e-3)
    optimizer = torch.optim.Adam(trainable_parameters(objective).values(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        objective(some).total.backward()
        optimizer.step()
    assert float(objective(some).total.detach()) < 0.7 * float(before.detach())
    assert all(weight.grad is None for weight in model.backbone.parameters())


def test_a_saved_model_comes_back_with_its_heads(tmp_path: Path) -> None:
    backbone().save_pretrained(tmp_path / "backbone")
    tokenizer().save_pretrained(tmp_path / "backbone")
    model = HierMemModel.from_pretrained(tmp_path / "backbone", config=with_mamba())
    for parameter in model.mamba.parameters():
        parameter.data += 0.1
    model.save_pretrained(tmp_path / "saved")
    again, ids = HierMemModel.from_pretrained(tmp_path / "saved"), ids_of(100)
    assert again.config.mamba == model.config.mamba
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    file = tmp_path / "saved" / "config.json"
    older = json.loads(file.read_text())
    del older["mamba"]["window"], older["mamba"]["sinks"]
    file.write_text(json.dumps(older | {"format_version": 1}))
    (tmp_path / "saved" / SEAL).unlink()  # which came later
    assert HierMemModel.from_pretrained(tmp_path / "saved").config.mamba.window == 0
    again.save_pretrained(tmp_path / "saved")
    kept = HierMemModel.from_pretrained(tmp_path / "saved", config=settings(policy="window"))
    assert kept.mamba.digest == model.mamba.digest
    without = HierMemModel.from_pretrained(tmp_path / "saved", config=with_mamba([]))
    assert not without.mamba.groups
    with pytest.raises(InputError, match="do not fit"):
        HierMemModel.from_pretrained(tmp_path / "saved", config=with_mamba([[0, 0]]))
    for other in (MambaConfig(groups=SOME, taps=3, window=9), MambaConfig(window=9)):
        with pytest.raises(InputError, match="attend to 6 last and 2 first tokens, not at 9 and 4"):
            HierMemModel.from_pretrained(tmp_path / "saved", config=HierMemConfig(mamba=other))


@pytest.mark.parametrize("wrong", [{"window": -1}, {"sinks": -1}, {"window": 2.5}, {"sinks": "4"}])
def test_heads_look_at_whole_numbers_of_tokens(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"must be a whole number|must not be negative"):
        MambaConfig(**wrong)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 2]], "no KV group 2 in layer 0"),
        ([[3, 0]], "no KV group 0 in layer 3"),
        ([[layer, group] for layer in range(3) for group in range(2)], "leave at least one"),
        ([[0, 1], [0, 1]], "twice"),
        ([[0, 1, 1]], "pairs of layer"),
    ],
)
def test_groups_that_cannot_be_replaced_are_refused(groups: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reader(config=with_mamba(groups))


def test_in_bfloat16_states_stay_exact() -> None:
    config = with_mamba(policy="none", positions="absolute")
    model = HierMemModel(config, backbone(dtype=torch.bfloat16), tokenizer()).eval()
    plain = HierMemModel(config, backbone(), tokenizer()).eval()
    ids = ids_of(60)
    with torch.no_grad():
        ours, wanted = model(ids), plain(ids)
    states = ours.past_key_values.memory.mamba.tensors()
    assert {t.dtype for name, t in states.items() if ".near." not in name} == {torch.float32}
    assert {t.dtype for name, t in states.items() if ".near." in name} == {torch.bfloat16}
    assert (ours.logits - wanted.logits).abs().mean() <= 0.02 * wanted.logits.abs().max()
