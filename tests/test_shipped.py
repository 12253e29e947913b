"""Parts that ship for the real small model: the trained memory, and Mamba heads."""

import pytest
import torch

from hiermem import HierMemConfig, HierMemModel
from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.memory.hmt.module import SummaryConfig


@pytest.mark.real
@pytest.mark.parametrize("name", ["smollm2-hmt", "smollm2-full", "smollm2-all"])
@torch.inference_mode()
def test_the_trained_memory_reads_prose_better_than_none(name: str) -> None:
    """Three segments of the embedded document, though it was trained on novels."""
    model = HierMemModel.from_pretrained(name)
    assert model.summary is not None
    assert (
        sum(tensor.numel() for tensor in model.summary.parameters()) < 0.02 * model.backbone.num_parameters()
    )
    off = HierMemConfig(**{**model.config.settings(), "summary": SummaryConfig(0)})
    text = BUNDLED_DOCUMENTS["python-reference"]()[:20_000]
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, : 3 * model.config.segment]
    losses = [float(m(ids, labels=ids).loss) for m in (model, HierMemModel.from_pretrained(name, off))]
    assert losses[0] < losses[1]


@pytest.mark.real
@torch.inference_mode()
def test_the_mamba_heads_stand_in_for_what_they_replace() -> None:
    """Two segments of the embedded document: near the backbone, far from one without these heads."""
    model = HierMemModel.from_pretrained("smollm2-mamba")
    assert len(model.mamba.groups) == 30  # a third of the KV groups
    text = BUNDLED_DOCUMENTS["python-reference"]()[:20_000]
    ids = model.tokenizer(text, return_tensors="pt").input_ids[:, : 2 * model.config.segment]
    bare = HierMemModel.from_pretrained("smollm2-mamba", HierMemConfig.preset("bare"))
    assert not bare.mamba.groups
    replaced, plain = (float(m(ids, labels=ids).loss) for m in (model, bare))
    for layer in model.mamba.layers.values():
        layer.scale.fill_(-torch.inf)
        layer.skip.zero_()
    model.mamba.config.window = 0
    removed = float(model(ids, labels=ids).loss)
    assert abs(replaced - plain) < 0.2 < removed - plain
