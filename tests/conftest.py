"""Settings for all tests: two shared cores, nothing downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from readers import backbone, tokenizer

from hiermem.eval.methods import METHODS
from hiermem.eval.tasks import TASKS
from hiermem.memory.policies import POLICIES
from hiermem.memory.tier import TIERS
from hiermem.retrieval.keys import SEARCH_KEYS

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random backbone and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-model")
    backbone().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny backbone that reads segments of the usual length."""
    folder = tmp_path_factory.mktemp("wide-model")
    model = backbone()
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries whose additions go with the test."""
    for registry in (POLICIES, SEARCH_KEYS, TIERS):
        for inside in ("_classes", "_names"):
            monkeypatch.setattr(registry, inside, dict(getattr(registry, inside)))
    with patch.dict(TASKS), patch.dict(METHODS):
        yield
