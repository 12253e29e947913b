"""Using the bare backbone in one thread while another reads through it."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from readers import backbone, ids_of, reader, settings, text_of

from hiermem.backbone import Backbone
from hiermem.memory.hmt.module import SummaryConfig


def elsewhere(call: Callable[[], Any]) -> Any:
    """Result of ``call`` in another thread."""
    results: list[Any] = []

    def run() -> None:
        with torch.no_grad():
            results.append(call())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "opt", "gpt-neox"])
def test_the_bare_backbone_works_while_it_is_attached(family: str, implementation: str) -> None:
    model, ids = backbone(family), ids_of(40, rows=2)
    model.config._attn_implementation = implementation
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad():
        plain = model(ids, attention_mask=mask).logits
    adapter = Backbone(model)
    with adapter.attached(adapter.new_memory(settings().working)):
        assert torch.equal(elsewhere(lambda: model(ids, attention_mask=mask).logits), plain)
        assert elsewhere(lambda: model.generate(ids, max_new_tokens=3, do_sample=False)).shape == (2, 43)


def test_a_reading_is_undisturbed_by_another_thread() -> None:
    """The other thread's passes through the head, in the middle of every chunk, are not taken for its own."""
    config = settings(8, segment=16)
    config.summary = SummaryConfig(tokens=2, sensory=2, width=8, init_text="")
    model, ids = reader(config=config), ids_of(60)
    with torch.no_grad():
        expected = model(ids).logits
        other = ids_of(9, seed=5)
        bare = model.backbone(other).logits
        seen = []
        layer = model.backbone.model.layers[1]

        def meanwhile(*_: Any) -> None:
            if threading.current_thread() is threading.main_thread():
                seen.append(elsewhere(lambda: model.backbone(other).logits))

        handle = layer.register_forward_pre_hook(meanwhile)
        disturbed = model(ids).logits
        handle.remove()
    assert torch.equal(disturbed, expected) and seen
    assert all(torch.equal(logits, bare) for logits in seen)


def test_two_threads_read_through_one_model() -> None:
    model, texts = reader(), [text_of(60, seed) for seed in (1, 2)]
    alone = [model.read(text) for text in texts]
    memories: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda at=at: memories.update({at: model.read(texts[at], progress=False)}))
        for at in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at in range(2):
        for one, same in zip(memories[at].working.caches, alone[at].working.caches, strict=True):
            assert torch.equal(one.keys, same.keys)
