"""The memory embeddings (HMT) that a model has: its own, still untrained, or what ships for its backbone."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.memory.hmt.module import HMTModule, SummaryConfig
from hiermem.shipped import shipped, undamaged

FILE = "memory.safetensors"
_CHANGEABLE = ("last", "sensory")
"""Settings that trained parameters do not depend on."""


def of_backbone(config: HierMemConfig, embeddings: Tensor, init_ids: Tensor) -> HMTModule | None:
    """Those that a configuration asks for: what ships for the backbone, or new ones; None: none.

    Args:
        embeddings: of the backbone's tokens, ``[V, d]``.
        init_ids: of the text that a new one begins as, ``[w]`` int64.

    Raises:
        InputError: settings are given and the number of tokens is not, which what ships cannot follow, or
            what ships is damaged.
    """
    chosen = config.summary
    if chosen.tokens is None:
        path = None if config.mamba.groups else shipped(config.backbone, FILE)
        changes = _changes(chosen, config.backbone, path)
        return None if path is None else _loaded(path, embeddings.shape[1], changes)
    if not chosen.tokens:
        return None
    summary = HMTModule(chosen, embeddings.shape[1])
    summary.start(embeddings, init_ids)
    return summary


def _changes(chosen: SummaryConfig, backbone: str, path: Path | None) -> dict[str, Any]:
    """Settings that are given beside those that ship.

    Raises:
        InputError: what ships cannot have them, or nothing ships.
    """
    usual = SummaryConfig()
    names = [own.name for own in fields(chosen) if getattr(chosen, own.name) != getattr(usual, own.name)]
    for name in names:
        if path is None:
            raise InputError(
                f"No memory embeddings ship for {backbone or 'this backbone'}, so that summary.{name} would "
                f"change nothing: give summary.tokens, too."
            )
        if name not in _CHANGEABLE:
            raise InputError(
                f"The memory embeddings that ship for {backbone} have another summary.{name}: leave it out, "
                f"or give summary.tokens, too, for new ones."
            )
    return {name: getattr(chosen, name) for name in names}


def _loaded(path: Path, width: int, changes: dict[str, Any]) -> HMTModule:
    """Those in a file."""
    with undamaged(path, "The memory embeddings' parameters"):
        with safe_open(path, framework="pt") as file:
            settings = json.loads(file.metadata()["config"])
        summary = HMTModule(replace(SummaryConfig(**settings), **changes), width)
        summary.load_state_dict(load_file(path))
    return summary
