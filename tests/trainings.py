"""Tiny trainings for the tests, in one process or many."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from readers import ids_of, lively, reader, settings, text_of

from hiermem.config import HierMemConfig
from hiermem.fingerprint import WeightsDigest
from hiermem.lora import LoraConfig, add_lora
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.recalling import kv_tier
from hiermem.training import finetune
from hiermem.training.batches import Batch, Sample, collated
from hiermem.training.distillation import HeadObjective
from hiermem.training.distributed import rank, world
from hiermem.training.engine import Engine, TrainingBatch
from hiermem.training.kv_prompt import KVPromptObjective, add_kv_prompt
from hiermem.training.objective import LanguageObjective, ObjectiveConfig, TrainingObjective
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.parameters import freeze_all_but
from hiermem.training.sentences import SentenceBatch
from hiermem.training.state_encoder import StateObjective, add_state_encoder
from hiermem.training.stored_passages import StoredPassage, StoredPassages

COMBINATIONS = (
    "plain",
    "lora",
    "recomputed",
    "lora-recomputed",
    "half-recomputed",
    "mamba",
    "imitating",
    "kv",
    "states",
)


def model_with_memory(summary: SummaryConfig | None = None, **working: Any) -> HierMemModel:
    """A reader with random memory parameters."""
    config = settings(16, 16, **working).settings()
    config["summary"] = summary or SummaryConfig(tokens=2, width=8)
    model = lively(reader(config=HierMemConfig(**config)), 0.3)
    model.loaded_weights = WeightsDigest.of(model.backbone.state_dict())  # as if its backbone had a name
    return model


def isolated() -> HierMemModel:
    """A reader without a cache, each of whose segments is read in part before to recall for it."""
    summary = SummaryConfig(tokens=2, width=8, query="half")
    return model_with_memory(summary, policy="forget", update_interval=16, positions="compact")


def combination(name: str) -> tuple[TrainingObjective, OptimizerConfig]:
    """An objective and settings by name."""
    if name in ("kv", "states"):
        objective = StoredObjective() if name == "kv" else SentenceObjective()
        return objective, OptimizerConfig(batch=2, micro=1, memory_rate=0.01)
    model = isolated() if "half" in name else model_with_memory()
    if "lora" in name:
        torch.manual_seed(5)
        add_lora(model.backbone, LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    optimizer = OptimizerConfig(batch=2, micro=1, memory_rate=0.01)
    if name in ("mamba", "imitating"):
        model.replace_heads(MambaConfig(groups=[[0, 1], [2, 0], [2, 1]]))
    if name == "imitating":
        freeze_all_but(model, ("mamba",))
        return HeadObjective(model), optimizer
    freeze_all_but(model, ("prompt", "recall", "lora", "mamba"))
    objective = ObjectiveConfig(depth=1, recompute="recomputed" in name)
    return LanguageObjective(model.train(), objective), optimizer


class StoredObjective(KVPromptObjective):
    """A model with a prompt of keys and values, and questions about what it has read."""

    def __init__(self) -> None:
        config = settings(sinks=2)
        config.longterm = replace(config.longterm, tiers={"kv": {"keep": 1.0}})
        model = reader(config=config, bos=True)
        model.loaded_weights = WeightsDigest.of(model.backbone.state_dict())
        memory = model.read(text_of(120), progress=False)
        add_kv_prompt(model)
        freeze_all_but(model, ("kv",))
        super().__init__(model)
        self.passages = [passage_of(memory, number) for number in range(6)]

    def batch(self, step: int, number: int) -> StoredPassages:
        return StoredPassages([self.passages[(2 * step + number) % 6]])


class SentenceObjective(StateObjective):
    """A model with a state encoder, and states of sentences drawn at random."""

    def __init__(self) -> None:
        model = reader()
        model.loaded_weights = WeightsDigest.of(model.backbone.state_dict())
        add_state_encoder(model, 6)
        assert model.state_encoder is not None
        with torch.no_grad():
            for weight in model.state_encoder.parameters():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        freeze_all_but(model, ("states",))
        super().__init__(model)

    def batch(self, step: int, number: int) -> SentenceBatch:
        generator = torch.Generator().manual_seed(100 * step + number)
        counts = torch.randint(1, 6, (5,), generator=generator)
        assert self.model.state_encoder is not None
        width = len(self.model.state_encoder.mean)
        states = torch.randn(int(counts.sum()), width, generator=generator).half()
        taught = torch.nn.functional.normalize(torch.randn(5, 6, generator=generator), dim=-1)
        return SentenceBatch([f"sample {number}"], states, counts, taught)


def passage_of(memory: MemoryState, number: int) -> StoredPassage:
    """A question about a part of a segment; lengths differ."""
    segment, first = 1 + number % 2, 5 * number
    mask = (torch.arange(48) >= first) & (torch.arange(48) < first + 10 + number)
    tail, answer = (ids_of(count + number, seed=number)[0].tolist() for count in (7, 4))
    text = [1, *memory.records()[segment].ids[mask].tolist(), *tail]
    return StoredPassage(f"question {number}", kv_tier(memory), {segment: mask}, tail, text, answer)


def batch(step: int, number: int, length: int = 40) -> Batch:
    """Sample ``number`` of a step; lengths differ."""
    ids = ids_of(length - 7 * number, seed=100 * step + number)[0].tolist()
    return collated([Sample(f"sample {number}", ids, [True] * len(ids))], length)


@contextmanager
def stopped_in_step(number: int) -> Iterator[None]:
    """Trainings within it are stopped in a step, as by Ctrl-C."""
    taken = finetune._step

    def dies(*arguments: Any) -> dict[str, Any]:
        if arguments[-1] == number:
            raise KeyboardInterrupt
        return taken(*arguments)

    with patch.object(finetune, "_step", dies), pytest.raises(KeyboardInterrupt):
        yield


def batch_for(objective: TrainingObjective, step: int, number: int) -> TrainingBatch:
    """Sample ``number`` of a step as an objective takes it."""
    make = objective.batch if isinstance(objective, StoredObjective | SentenceObjective) else batch
    return make(step, number)


def steps(engine: Engine, count: int, first: int = 0) -> list[float]:
    """Losses of a few steps of two samples."""
    losses = []
    for step in range(first, first + count):
        own = range(rank(), 2, world())
        batches = [batch_for(engine.objective, step, number).to(engine.device) for number in own]
        losses.append(engine.step(batches, 1.0)[0])
    return losses


def deepspeed_settings(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration as shipped, with another ZeRO stage."""
    settings = json.loads((Path(__file__).parent.parent / "ds_config.json").read_text("utf-8"))
    settings["zero_optimization"]["stage"] = stage
    return settings
