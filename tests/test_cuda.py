"""The same on a GPU as on the processor: reading, asking, memories on disk, generation, training."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import CONFIGS
from readers import ids_of, lively, lively_namm, reader, settings, text_of, tokens_of
from test_mamba import isolated, replaced, with_mamba
from test_summary import CARRIED, carried, published
from torch import Tensor
from trainings import COMBINATIONS, batch, combination, steps

from hiermem.config import HierMemConfig
from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.mamba.scan import ScanInputs, _kernel, fused, step_by_step
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.reranking import reranked
from hiermem.training.engine import Engine, TorchEngine
from hiermem.training.objective import TrainingObjective
from hiermem.training.parameters import trainable_parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def evolved(config: HierMemConfig) -> HierMemConfig:
    """With a network of the size of `lively_namm`."""
    return HierMemConfig(**{**config.settings(), "namm": lively_namm().config})


KINDS = {
    "none": settings(policy="none"),
    "window": settings(policy="window"),
    "attention": settings(),
    "namm": evolved(settings(policy="namm")),
    "distance": settings(positions="distance"),
    "published": published(),
    "carried": carried(),
    "searching": carried(summary=replace(CARRIED, search=6)),
    "isolated": isolated(),
    "mamba": with_mamba(),
    "everything": evolved(with_mamba(summary=CARRIED, policy="namm")),
}


def made(config: HierMemConfig, family: str = "llama") -> HierMemModel:
    """A reader with random memory parameters, on the processor."""
    if config.mamba.groups:
        model = replaced(config, family)
    else:
        model = reader(family, config)
        model = lively(model) if config.summary.tokens else model
    if config.working.policy == "namm":
        model.namm.load_state_dict(lively_namm().state_dict())
    return model


def on_gpu(model: HierMemModel) -> HierMemModel:
    return model.to("cuda")


def assert_near(found: Tensor, expected: Tensor) -> None:
    assert found.is_cuda
    torch.testing.assert_close(found.detach().cpu(), expected.detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", list(KINDS))
def test_logits_are_those_of_the_processor(kind: str) -> None:
    config, ids = KINDS[kind], ids_of(150, rows=2)
    mask = torch.ones_like(ids)
    mask[1, 97:] = 0
    with torch.no_grad():
        expected = made(config)(ids, attention_mask=mask).logits
        found = on_gpu(made(config))(ids.cuda(), attention_mask=mask.cuda()).logits
    assert_near(found[0], expected[0])
    assert_near(found[1, :97], expected[1, :97])


@pytest.mark.parametrize("family", list(CONFIGS))
def test_every_family_reads_on_a_gpu(family: str) -> None:
    with torch.no_grad():
        expected = made(settings(), family)(ids_of(150)).logits
        assert_near(on_gpu(made(settings(), family))(ids_of(150).cuda()).logits, expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_memory_goes_from_the_gpu_to_the_disk_and_to_the_processor(kind: str, tmp_path: Path) -> None:
    model, text = on_gpu(made(KINDS[kind])), text_of(150)
    memory = model.read(text)
    memory.save(tmp_path / "memory")
    answer = model.ask(memory, "Why did Orion sail?", max_new_tokens=8)
    again = model.ask(MemoryState.load(tmp_path / "memory", model), "Why did Orion sail?", max_new_tokens=8)
    assert (answer.text, answer.sources) == (again.text, again.sources)
    processor = made(KINDS[kind])
    there = MemoryState.load(tmp_path / "memory", processor)
    assert there.text == text and there.working.bookkeeping() == memory.working.bookkeeping()
    assert processor.ask(there, "Why did Orion sail?", max_new_tokens=8).sources == answer.sources
    for ours, theirs in zip(memory.working.caches, there.working.caches, strict=True):
        for name, tensor in tokens_of(ours).items():
            torch.testing.assert_close(tensor.cpu(), tokens_of(theirs)[name])


@pytest.mark.parametrize("kind", list(KINDS))
def test_generation_is_that_of_the_processor(kind: str) -> None:
    arguments = {"max_new_tokens": 10, "num_beams": 2, "do_sample": False, "eos_token_id": None}
    expected = made(KINDS[kind]).generate(ids_of(70), **arguments)
    assert on_gpu(made(KINDS[kind])).generate(ids_of(70).cuda(), **arguments).tolist() == expected.tolist()


def engines(name: str) -> list[Engine]:
    """The same training on the processor and on a GPU."""
    pair: list[Engine] = []
    for device in ("cpu", "cuda"):
        objective, optimizer = combination(name)
        rng = torch.Generator().manual_seed(6)
        for parameter, weight in objective.named_parameters():
            if "lora_B" in parameter:  # 0 at first, and with it the gradients of A
                weight.data = torch.randn(weight.shape, generator=rng)
        objective.to(device)
        pair.append(TorchEngine(objective, optimizer))
    return pair


def gradients(objective: TrainingObjective, device: str) -> dict[str, Tensor]:
    """Gradients of one step."""
    objective(batch(0, 0).to(torch.device(device))).total.backward()
    return {
        name: weight.grad
        for name, weight in trainable_parameters(objective).items()
        if weight.grad is not None
    }


@pytest.mark.parametrize("name", COMBINATIONS)
def test_gradients_are_those_of_the_processor(name: str) -> None:
    processor, gpu = engines(name)
    expected, found = gradients(processor.objective, "cpu"), gradients(gpu.objective, "cuda")
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        assert_near(found[parameter], gradient)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_training_goes_on_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    processor, engine = engines(name)
    assert steps(engine, 2) == pytest.approx(steps(processor, 2), abs=1e-3)
    engine.save(tmp_path)
    expected = steps(engine, 2, first=2)
    other = engines(name)[1]
    other.load(tmp_path)
    assert steps(other, 2, first=2) == pytest.approx(expected, abs=1e-5)


def test_segments_are_reranked_as_on_the_processor() -> None:
    hits = [Hit(n, 1.0, SegmentRecord(0, ids_of(1)[0], 0, 1, text_of(20 + n, seed=n))) for n in range(5)]
    expected = reranked(made(settings()).reader, hits, "Who sailed north?")
    assert reranked(on_gpu(made(settings())).reader, hits, "Who sailed north?") == expected


@pytest.mark.parametrize("tokens", [2, 64, 130])
def test_the_kernels_of_mamba_ssm_are_the_recurrence_with_its_gradients(tokens: int) -> None:
    pytest.importorskip("mamba_ssm")
    kernel = _kernel()
    assert kernel is not None
    rng, widths = torch.Generator().manual_seed(0), (2, 3, tokens, 64)
    made = [torch.randn(s, generator=rng) for s in (widths, widths[:3], (3,), widths, widths, (2, 3, 64, 64))]
    made[1], made[2] = made[1].abs() / 8, made[2].abs() / 8
    made[1][:, :, tokens // 2] = 0
    ours, plain = ([tensor.to(device).requires_grad_() for tensor in made] for device in ("cuda", "cpu"))
    results = (
        fused(kernel, ScanInputs(*ours[:5]), ours[5]),
        step_by_step(ScanInputs(*plain[:5]), plain[5]),
    )
    for output, state in results:
        (output.square().mean() + state.mean()).backward()
    for one, other in zip(results[0], results[1], strict=True):
        assert (one.cpu() - other).abs().max() <= 0.01 * other.abs().max()  # products in TF32
    for one, other in zip(ours, plain, strict=True):
        assert (one.grad.cpu() - other.grad).abs().max() <= 0.01 * other.grad.abs().max()
