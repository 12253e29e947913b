"""Weights in fewer bits, by torchao: what is read with them, and who may go on with it."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from readers import backbone, ids_of, text_of, tokenizer
from torch.nn import functional as F

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, MemoryIncompatibleError
from hiermem.fingerprint import WeightsDigest, backbone_hash, plain_tensors
from hiermem.half_weights import HalfLinear, HalfWeightsConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.quantization import quantization_config, quantization_of

CPU = torch.device("cpu")
KINDS = ["float16", "int8"]


def loaded(path: Path, quantization: str | None = "int8") -> HierMemModel:
    config = HierMemConfig.preset("full", chunk=16, segment=32).with_working(budget=32, update_interval=16)
    options = {} if quantization is None else {"quantization_config": quantization_config(quantization, CPU)}
    return HierMemModel.from_pretrained(path, config, dtype="float32", device="cpu", **options)


def near(ids: torch.Tensor, first: HierMemModel, second: HierMemModel) -> float:
    """Divergence of the second model's next tokens from the first one's, a token."""
    with torch.no_grad():
        logits, other = first(ids).logits, second(ids).logits
    loss = F.kl_div(other.log_softmax(-1), logits.log_softmax(-1), log_target=True, reduction="batchmean")
    return float(loss) / ids.shape[1]


def test_int8_is_near_and_smaller(tiny_model: Path) -> None:
    """At most half a scale of a row from every weight, in a byte each."""
    whole, small = loaded(tiny_model, None), loaded(tiny_model)
    assert quantization_of(whole.backbone) is None and quantization_of(small.backbone) == "int8"
    layer = "model.layers.0.mlp.up_proj.weight"
    expected, found = whole.backbone.get_parameter(layer), small.backbone.get_parameter(layer)
    codes = plain_tensors({layer: found})[f"{layer}.qdata"]
    assert codes.dtype == torch.int8 and codes.shape == expected.shape
    scale = expected.abs().amax(dim=1, keepdim=True) / 127
    assert ((found.dequantize() - expected).abs() <= 0.51 * scale).all()
    assert 0 < near(ids_of(40), whole, small) < 0.05


def test_float16_is_nearly_the_same(tiny_model: Path) -> None:
    """Every weight to 11 bits; sums are of float32."""
    whole, half = loaded(tiny_model, None), loaded(tiny_model, "float16")
    assert quantization_of(half.backbone) == "float16" and half.dtype == torch.float32
    layers = [(name, layer) for name, layer in half.backbone.named_modules() if isinstance(layer, HalfLinear)]
    assert len(layers) == 7 * 3 + 1, "of three blocks, and the head"
    for name, layer in layers:
        expected = whole.backbone.get_submodule(name).weight
        torch.testing.assert_close(layer.weight, expected, atol=2**-24, rtol=2**-11)
    assert near(ids_of(40), whole, half) < 1e-6
    with torch.no_grad():
        inputs, layer = torch.randn(2, 5, layers[0][1].in_features), layers[0][1]
        torch.testing.assert_close(layer(inputs), F.linear(inputs, layer.weight), atol=1e-5, rtol=1e-4)


def test_a_bias_is_kept() -> None:
    linear, inputs = torch.nn.Linear(6, 4), torch.randn(3, 6)
    found = HalfLinear(linear)(inputs)
    assert not found.requires_grad
    torch.testing.assert_close(found, linear(inputs).detach(), atol=1e-3, rtol=1e-3)


def test_it_reads_where_gradients_are_on(tiny_model: Path) -> None:
    half, whole = loaded(tiny_model, "float16"), loaded(tiny_model, None)
    logits = half(ids_of(20)).logits
    assert not logits.requires_grad
    torch.testing.assert_close(logits, whole(ids_of(20)).logits.detach(), atol=1e-2, rtol=1e-2)


def test_a_model_in_float16_keeps_its_size_and_place(tiny_model: Path) -> None:
    half = loaded(tiny_model, "float16")
    half.backbone.tie_weights()
    with pytest.raises(InputError, match="keeps its size"):
        half.resize_token_embeddings(120)
    with pytest.raises(InputError, match="load them anew"):
        half.to(torch.bfloat16)(ids_of(10))
    with pytest.raises(InputError, match="leave device_map out"):
        HierMemModel.from_pretrained(tiny_model, device_map="cpu", quantization_config=HalfWeightsConfig())


def test_a_copy_computes_the_same(tiny_model: Path) -> None:
    half = loaded(tiny_model, "float16")
    assert deepcopy(half)(ids_of(10)).logits.equal(half(ids_of(10)).logits)


def test_a_backbone_with_layers_of_its_own_kind_is_refused(tmp_path: Path) -> None:
    backbone("gpt2").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no layers to keep in float16"):
        loaded(tmp_path, "float16")


def test_weights_in_float16_refuse_gradients(tiny_model: Path) -> None:
    half = loaded(tiny_model, "float16")
    embeddings = half.get_input_embeddings()(ids_of(10)).detach().requires_grad_()
    with pytest.raises(InputError, match="have no gradients: train without"):
        half.backbone(inputs_embeds=embeddings)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_weights_in_float16_are_multiplied_in_float32(tiny_model: Path, dtype: str | torch.dtype) -> None:
    with pytest.raises(InputError, match="multiplied in float32: leave dtype"):
        HierMemModel.from_pretrained(
            tiny_model, dtype=dtype, quantization_config=quantization_config("float16", CPU)
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_is_read_asked_and_gone_on_with(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    model = loaded(tiny_model, kind)
    ids = model.reader.encode(text_of(60))[0]
    whole = model.read(ids)
    model.read(ids[:40]).save(tmp_path / "memory")
    assert MemoryState.quantized_with(tmp_path / "memory") == kind
    again = loaded(tiny_model, kind)
    memory = again.read(ids[40:], MemoryState.load(tmp_path / "memory", again))
    found, expected = memory.working.caches, whole.working.caches
    for cache, other in zip(found, expected, strict=True):
        assert cache.keys is not None and other.keys is not None
        torch.testing.assert_close(cache.keys, other.keys, atol=1e-4, rtol=1e-4)
    question = "Who keeps the garden?"
    assert again.ask(memory, question, max_new_tokens=4) == model.ask(whole, question, max_new_tokens=4)


@pytest.mark.parametrize("kind", KINDS)
def test_memories_know_what_read_them(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    whole, small = loaded(tiny_model, None), loaded(tiny_model, kind)
    assert "quantization" not in whole.fingerprint() and small.fingerprint()["quantization"] == kind
    for reader, other, how in (
        (small, whole, rf"\({kind}, this model has None\): load the model with quantization {kind}"),
        (whole, small, rf"quantization \(None, this model has {kind}\): load the model that made it"),
    ):
        reader.read(text_of(60)).save(tmp_path / "memory")
        with pytest.raises(MemoryIncompatibleError, match=how):
            MemoryState.load(tmp_path / "memory", other)
        for file in sorted((tmp_path / "memory").iterdir()):
            file.unlink()
        (tmp_path / "memory").rmdir()


def test_a_change_of_quantised_weights_is_noticed(tiny_model: Path) -> None:
    model = loaded(tiny_model)
    before = backbone_hash(model.backbone, model.adapter)
    digest = WeightsDigest.of(model.backbone.state_dict())
    assert not digest.changed(model.backbone.state_dict())
    parts = plain_tensors(dict(model.backbone.named_parameters()))
    parts["model.layers.0.mlp.up_proj.weight.qdata"].neg_()
    assert digest.changed(model.backbone.state_dict())
    assert backbone_hash(model.backbone, model.adapter) != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_leads_to_its_backbone(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    model = loaded(tiny_model, kind)
    model.save_pretrained(tmp_path / "saved")
    again = HierMemModel.from_pretrained(
        tmp_path / "saved", device="cpu", quantization_config=quantization_config(kind, CPU)
    )
    assert again.fingerprint() == model.fingerprint()
    assert quantization_of(HierMemModel.from_pretrained(tmp_path / "saved", device="cpu").backbone) is None


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("int3", "cpu", "no quantization 'int3': choose one of float16, int8, int4"),
        ("int4", "cpu", "in int4 on a GPU alone: choose int8"),
        ("float16", "cuda", "float16 is for x86 processors"),
    ],
)
def test_what_cannot_be_is_refused(name: str, device: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        quantization_config(name, torch.device(device))
