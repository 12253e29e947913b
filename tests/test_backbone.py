"""The adapter: with room for everything the backbone is itself, and it is itself again afterwards."""

import gc
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from families import CONFIGS, ROTARY, tiny
from readers import assert_same_memory, backbone, ids_of, over, reader, settings, text_of
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    GlmConfig,
    GptOssConfig,
    MambaConfig,
    PreTrainedModel,
    TextStreamer,
)

from hiermem.backbone import Backbone
from hiermem.errors import BackboneUnsupportedError
from hiermem.memory.longterm import LongTermMemory

FAMILIES = list(CONFIGS)
ROOMY = {"policy": "none", "budget": 64, "update_interval": 16}
INTERLEAVED = {
    "cohere": CohereConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.2,
    ),
    "glm": GlmConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=2,
        initializer_range=0.2,
    ),
}


class Listener(TextStreamer):
    """A streamer that keeps the tokens it is given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.tokens.append(-1)


def interleaved(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(INTERLEAVED[name]).eval()


# ---- exactly the backbone


@pytest.mark.parametrize("policy", ["none", "window", "keen", "lively"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_are_the_backbones(family: str, policy: str) -> None:
    model, ids = tiny(family), ids_of(60, rows=2)
    with torch.no_grad():
        plain = model(ids, labels=ids)
        for chunk in (1, 7, 16, 64):
            ours = over(model, chunk, policy=policy, budget=64, update_interval=32)(ids, labels=ids)
            torch.testing.assert_close(ours.logits, plain.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(ours.loss, plain.loss)


@pytest.mark.parametrize("family", INTERLEAVED)
def test_interleaved_logits_are_the_backbones(family: str) -> None:
    model, ids = interleaved(family), ids_of(60)
    assert all(shape.rotary is not None and shape.rotary.interleaved for shape in Backbone(model).geometries)
    with torch.no_grad():
        ours, plain = over(model, 16, **ROOMY)(ids).logits, model(ids).logits
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_backbones(family: str) -> None:
    ids = ids_of(40)
    gradients = []
    for wrap in (False, True):
        model = tiny(family)
        loss = (over(model, 8, **ROOMY) if wrap else model)(ids, labels=ids).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, ours = gradients
    assert plain.keys() == ours.keys()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], atol=1e-5, rtol=1e-3)


def test_bfloat16_logits_are_the_backbones() -> None:
    model, ids = tiny("llama", torch.bfloat16), ids_of(60)
    with torch.no_grad():
        ours, plain = over(model, 16, **ROOMY)(ids).logits, model(ids).logits
    assert ours.dtype == torch.bfloat16
    assert (ours - plain).abs().max() <= 2**-5 * plain.abs().max()  # a few roundings to 8 bits


@pytest.mark.parametrize("keep", [1, 5, 60])
def test_logits_to_keep(keep: int) -> None:
    model = over(tiny("llama"), 16, **ROOMY)
    ids = ids_of(60)
    with torch.no_grad():
        kept = model(ids, logits_to_keep=keep).logits
    assert kept.shape[1] == keep
    torch.testing.assert_close(kept, model(ids).logits[:, -keep:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_is_the_backbones(family: str) -> None:
    model, ids = tiny(family), ids_of(30)
    arguments = {"max_new_tokens": 20, "do_sample": False}
    plain = model.generate(ids, **arguments)
    assert torch.equal(over(model, 8, **ROOMY).generate(ids, **arguments), plain)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": True},
        {"do_sample": True, "top_k": 20},
        {"do_sample": True, "num_return_sequences": 3},
    ],
    ids=["beams", "sampled beams", "sampling", "several"],
)
def test_other_generation_is_the_backbones(family: str, arguments: dict[str, Any]) -> None:
    model, ids = tiny(family), ids_of(30, rows=2)
    outputs = []
    for generator in (model, over(model, 8, **ROOMY)):
        torch.manual_seed(7)
        outputs.append(generator.generate(ids, max_new_tokens=12, **arguments))
    assert torch.equal(*outputs)


def test_streamer_hears_every_token() -> None:
    listener, model = Listener(), over(tiny("llama"), 8, **ROOMY)
    output = model.generate(ids_of(20), max_new_tokens=9, do_sample=False, streamer=listener)
    assert listener.tokens == [*output[0].tolist(), -1]


def test_beam_search_after_eviction_follows_its_beams() -> None:
    """With one policy, beam search over an evicted memory scores its sequences as forward does."""
    model = over(tiny("llama"), 8, policy="window", budget=24)
    output = model.generate(
        ids_of(100),
        max_new_tokens=30,
        num_beams=3,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        output_scores=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        likely = model(output.sequences).logits[0, 99:-1].log_softmax(-1)
    total = likely.gather(1, output.sequences[0, 100:, None]).sum()
    torch.testing.assert_close(output.sequences_scores[0], total, atol=1e-3, rtol=1e-4)


def test_generation_with_roll_back_is_refused() -> None:
    model = over(tiny("llama"), **ROOMY)
    with pytest.raises(BackboneUnsupportedError, match="cannot take tokens back"):
        model(ids_of(8)).past_key_values.crop(1)


# ---- what cannot be supported says so


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4),
        FalconConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True),
    ],
    ids=["mamba", "alibi"],
)
def test_unsupported_backbones_are_refused(config: Any) -> None:
    with pytest.raises(BackboneUnsupportedError):
        Backbone(AutoModelForCausalLM.from_config(config))


def test_attention_sinks_of_the_model_are_refused() -> None:
    config = GptOssConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=64,
    )
    with pytest.raises(BackboneUnsupportedError):
        over(AutoModelForCausalLM.from_config(config).eval(), **ROOMY)(ids_of(8))


# ---- attached, and set back


@contextmanager
def failing(module: nn.Module, error: type[BaseException], call: int = 1) -> Iterator[None]:
    """Let the module's ``call``-th forward raise ``error``."""
    calls = iter(range(1, 1 << 30))

    def interrupt(*_: Any) -> None:
        if next(calls) == call:
            raise error("injected")

    handle = module.register_forward_pre_hook(interrupt)
    try:
        yield
    finally:
        handle.remove()


def everything(model: PreTrainedModel) -> tuple[Any, ...]:
    """Traces that attaching could leave behind on a model."""
    modules = {name: (type(module), sorted(vars(module))) for name, module in model.named_modules()}
    hooks = [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    return model.config.to_dict(), model.config._attn_implementation, modules, hooks


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_backbone_is_set_back(implementation: str, error: type[BaseException] | None) -> None:
    model, ids = backbone("gemma3"), ids_of(50)
    model.set_attn_implementation(implementation)
    before, plain = everything(model), model(ids).logits
    ours = over(model, 8)
    if error is None:
        ours(ids)
        ours.generate(ids, max_new_tokens=3)
    else:
        with failing(model.model.layers[1], error, call=3), pytest.raises(error, match="injected"):
            ours(ids)
    assert everything(model) == before
    assert torch.equal(model(ids).logits, plain)


def test_other_models_of_the_family_are_left_alone() -> None:
    model, twin, ids = backbone("llama"), backbone("llama"), ids_of(40)
    plain = twin(ids).logits
    adapter = Backbone(model)
    with adapter.attached(adapter.new_memory(settings().working)):
        assert torch.equal(twin(ids).logits, plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_interrupted_reading_goes_on_as_if_nothing_had_happened(
    family: str, error: type[BaseException]
) -> None:
    model, text = reader(family), text_of(120)
    whole = model.read(text)
    inner = model.backbone.base_model
    layer = inner.h[1] if family == "gpt2" else inner.layers[1]
    for call in (1, 2, 6, 9):
        memory = model.new_memory()
        with failing(layer, error, call), pytest.raises(error, match="injected"):
            model.read(text, memory)
        assert memory.tokens == 16 * (call - 1)
        assert memory.text == text[: memory.characters]
        assert_same_memory(model.read(text[memory.characters :], memory), whole, atol=1e-6)


@pytest.mark.parametrize("later", [False, True], ids=["before it is kept", "after"])
def test_interrupted_writing_goes_on_as_if_nothing_had_happened(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk is in the working memory already when its segment's record is written."""
    model, text = reader(), text_of(120)
    whole, memory = model.read(text), model.new_memory()
    write = LongTermMemory.write

    def interrupted(longterm: LongTermMemory, records: Any) -> None:
        if later:
            write(longterm, records)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LongTermMemory, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.read(text, memory)
    assert memory.tokens == 32 and not memory.longterm.records
    assert_same_memory(model.read(text[memory.characters :], memory), whole, atol=1e-6)


# ---- where keys stand


def rotations(model: PreTrainedModel, keys: Tensor, positions: Tensor, kind: str | None) -> Tensor:
    """Rotate unrotated ``keys [1, G, T, D]`` at ``positions [1, T]`` through the model's own code."""
    table = model.base_model.rotary_emb
    arguments = () if kind is None else (kind,)
    cos, sin = table(keys, positions, *arguments)
    return sys.modules[type(model).__module__].apply_rotary_pos_emb(keys, keys, cos, sin)[1]


@pytest.mark.parametrize("family", [*ROTARY, *INTERLEAVED])
def test_turned_keys_are_keys_rotated_at_the_new_position(family: str) -> None:
    model = interleaved(family) if family in INTERLEAVED else tiny(family)
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys, generator = torch.randn(1, 2, 9, width), torch.Generator().manual_seed(0)
    old = torch.randint(0, 500, (1, 9), generator=generator)
    new = torch.randint(0, 500, (1, 9), generator=generator)
    kinds = config.layer_types if family == "gemma3" else [None] * config.num_hidden_layers
    for shape, kind in zip(Backbone(model).geometries, kinds, strict=True):
        assert shape.rotary is not None
        turned = shape.rotary.turn(rotations(model, keys, old, kind), (new - old).expand(2, -1)[None])
        torch.testing.assert_close(turned, rotations(model, keys, new, kind), atol=2e-4, rtol=1e-4)


def test_what_was_read_is_freed_without_a_search_for_cycles() -> None:
    """A cache that lies in a cycle of references would stay, on a GPU too, until Python looks for cycles."""
    model = reader()
    gc.collect()
    gc.disable()
    try:
        output = model(ids_of(40))
        alive = weakref.ref(output.past_key_values.memory)
        del output
        assert alive() is None
        memory = model.read("One, two, three.")
        model.ask(memory, "How many?", max_new_tokens=2)
        alive = weakref.ref(memory.working)
        del memory
        assert alive() is None
    finally:
        gc.enable()
