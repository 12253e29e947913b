"""The benchmark of transfer: what its texts promise, and that it scores as the backbone alone would."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="module")
def transfer() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks/transfer.py"
    spec = importlib.util.spec_from_file_location("transfer", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["transfer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_facts_come_before_what_refers_to_them_and_questions_have_their_answers(transfer: ModuleType) -> None:
    made = transfer.texts(torch.Generator().manual_seed(0), 4)
    for ids, asks, referred in zip(made.ids, made.asks, made.referred, strict=True):
        assert len(ids) == 1 + 3 * transfer.SENTENCES and ids[0] == transfer.BOS
        told: dict[int, int] = {}
        references: dict[int, int] = {}
        for mark, key, answer in ids[1:].view(-1, 3).tolist():
            if mark == transfer.FACT:
                assert key not in told
                told[key] = answer
            elif mark == transfer.REFER:
                assert answer - transfer.CLASS == (told[key] - transfer.VALUE) % transfer.CLASSES
                references[key] = references.get(key, 0) + 1
            else:
                assert min(mark, key, answer) >= transfer.FILLER
        questions = asks.view(-1, 3).tolist()
        assert {key: value for _, key, value in questions} == told and len(questions) == transfer.FACTS
        assert references == {
            key: transfer.REFERENCES for (_, key, _), often in zip(questions, referred, strict=True) if often
        }
        assert len(references) == transfer.FACTS // 2


@pytest.mark.parametrize("family", ["gpt-neox", "qwen3"])
def test_with_all_kept_answers_are_scored_as_by_the_backbone_alone(transfer: ModuleType, family: str) -> None:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(transfer.FAMILIES[family]()).eval()
    made = transfer.texts(torch.Generator().manual_seed(1), 2)
    ids = torch.cat((made.ids, made.asks), dim=1)
    with torch.inference_mode():
        logits = backbone(input_ids=ids).logits[:, -made.asks.shape[1] + 1 :: 3]
    nll = F.cross_entropy(logits.transpose(1, 2), made.asks[:, 2::3], reduction="none").mean(1)
    model = transfer.attach(family, backbone)
    rows = list(transfer.recall(model, made, policy="none"))
    assert [row["nll"] for row in rows] == pytest.approx(nll.tolist(), rel=1e-4)
    assert [row["kept"] for row in rows] == [1.0, 1.0]
    pruned = list(transfer.recall(model, made, policy="namm", budget=256))
    assert [row["kept"] for row in pruned] == [0.25, 0.25]
