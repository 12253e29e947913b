"""Retrieval on PubMedQA: each abstract is a record, each question a query (Jin et al., arXiv 1909.06146)."""

from collections.abc import Sequence
from typing import Any

import torch

from hiermem.errors import InputError
from hiermem.eval.tasks.pubmedqa import Item
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, Record


def evaluate(items: Sequence[Item], config: LongTermConfig) -> dict[str, Any]:
    """Share of questions whose own abstract is the best record, or among the five best."""
    if not items:
        raise InputError("There is nothing to evaluate: raise --limit.")
    memory = LongTermMemory(config)
    nothing = torch.zeros(0, dtype=torch.int32)
    memory.write([Record(0, nothing, 0, len(item.abstract), item.abstract) for item in items])
    ranks = [[hit.segment for hit in memory.search(item.question, 5)] for item in items]
    return {
        "metrics": {
            "recall_at_1": sum(own in found[:1] for own, found in enumerate(ranks)) / len(items),
            "recall_at_5": sum(own in found for own, found in enumerate(ranks)) / len(items),
        },
        "n": len(items),
    }
