"""Whatever reads a text begins it as reading does: with the token that the tokenizer puts before texts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import method_around
from readers import lively, reader, settings, text_of
from test_eval import write_pubmedqa
from torch import Tensor

from hiermem.backbone import Backbone
from hiermem.config import HierMemConfig
from hiermem.eval.inspection import inspect
from hiermem.eval.methods import METHODS
from hiermem.eval.result_log import ResultLog
from hiermem.eval.tasks import interleaved, passkey, pg19
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.hmt.segments import TextSummary
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.training.calibration import CalibrationConfig, calibrate
from hiermem.training.prompts import TASKS, TrainTexts, prompt
from hiermem.training.recency import RecencyConfig, recency_ratios
from hiermem.training.retrieval_pairs import PairConfig, RetrievalPairs
from hiermem.training.samples import SampleConfig, TrainingDataset

BOS = 1


@pytest.fixture
def begins(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first token of everything that is read from nothing; halves of segments are no texts."""
    found: list[int] = []
    real = Backbone.read_chunk

    def read(self: Backbone, memory: WorkingMemory, ids: Tensor, *rest: Any, **named: Any) -> Tensor:
        alone = ids.shape[1] == 1  # single tokens, by which a model's rotation is found
        if not alone and not any(memory.num_tokens) and not isinstance(memory.recurrence, TextSummary):
            found.extend(ids[:, 0].tolist())
        return real(self, memory, ids, *rest, **named)

    monkeypatch.setattr(Backbone, "read_chunk", read)
    return found


def wide(**working: Any) -> HierMemModel:
    model = reader(config=settings(**working), bos=True)
    model.adapter.trained_range = 4096
    return model


def encoded(model: HierMemModel, words: int) -> list[int]:
    return list(model.tokenizer(text_of(words), add_special_tokens=False).input_ids)


def read_between() -> None:
    summary = SummaryConfig(tokens=2, width=8, query="half")
    config = settings(32, 32, policy="forget", update_interval=32, positions="compact")
    model = lively(reader(config=HierMemConfig(**{**config.settings(), "summary": summary}), bos=True))
    task = interleaved.Interleaved(data=Path("books"), model="tiny", segments=3)
    task.measure(model, {"a": text_of(80), "b": text_of(80, 1)}, ResultLog(None, {}))


def read_key() -> None:
    task = passkey.PassKey(haystack="book.txt", lengths=(200,), limit=1)
    task.measure(wide(), text_of(2500), ResultLog(None, {}))


READERS: dict[str, Callable[[], object]] = {
    "reading": lambda: wide().read(text_of(20), progress=False),
    "calibrate": lambda: calibrate(
        wide().reader, encoded(wide(), 200), CalibrationConfig(tokens=64, texts=2)
    ),
    "heads": lambda: recency_ratios(wide().reader, encoded(wide(), 99), RecencyConfig(tokens=48, window=6)),
    "interleaved": read_between,
    "passkey": read_key,
    "pg19": lambda: pg19.PG19(data=Path("books"), max_tokens=60, window=25, overlap=3).measure(
        wide(), {"b": text_of(60)}, ResultLog(None, {})
    ),
    "inspect": lambda: inspect(wide(), text_of(20), progress=False),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reading_begins_alike(name: str, begins: list[int]) -> None:
    READERS[name]()
    assert set(begins) == {BOS}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_begins_alike(name: str, begins: list[int]) -> None:
    model = wide(policy="window")
    model.adapter.trained_range = 600  # what is truncated begins further on
    method = method_around(model, name)
    with torch.inference_mode():
        prompt = method.prompt(method.read(text_of(100)), "Who is the captain?")
        model.read_ids(prompt.working, prompt.ids)
    assert set(begins) == {BOS}


def test_all_that_is_trained_on_begins_alike(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / "pg19" / split).mkdir(parents=True)
        (tmp_path / "pg19" / split / "7.txt").write_text(text_of(4000).replace(" and ", ". "), "utf-8")
    (tmp_path / "pubmedqa").mkdir()
    write_pubmedqa(tmp_path / "pubmedqa")
    model = wide()
    for shares in ({}, {"books": 0, "questions": 1}, {"books": 0, "facts": 1}):
        config = SampleConfig(tokens=600, held_out=1, **shares)
        sample = TrainingDataset(model.tokenizer, tmp_path, config)[0]
        assert sample.ids[0] == BOS and BOS not in sample.ids[1:] and len(sample.ids) <= 600
        assert len(sample.scored) == len(sample.ids) and not sample.scored[0]
    source = TrainTexts(model.tokenizer, tmp_path, "Answer.", length=200)
    for task in ("needles", "continuation"):
        assert prompt(source, task, 0, seed=0).text[0] == BOS, task
    assert set(TASKS) == {"needles", "continuation", "abstracts"}  # the last asks as the first does
    pairs = RetrievalPairs(model.tokenizer, tmp_path, PairConfig(held_out=1), model.config.longterm)
    assert set(pairs.batch(range(4)).ids[:, 0].tolist()) == {BOS}
