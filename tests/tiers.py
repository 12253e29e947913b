"""Tiny models of every tier, the same ones whatever draws the weights: memories of them are kept in data/."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from readers import backbone, settings, text_of, tokenizer

from hiermem.config import HierMemConfig
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.mamba.module import MambaConfig
from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.model import HierMemModel

MEMORIES = Path(__file__).parent / "data" / "memories"
"""``formatN/TIER``: what `TIERS[TIER]` left of `TEXT`, as saved by the first release with that format."""

TEXT = text_of(36, seed=7)
HEADS = MambaConfig(groups=[[0, 1], [2, 0], [2, 1]], taps=3, window=6, sinks=2)
SHARES = [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]
NETWORK = NammConfig(SpectrogramConfig(width=8, hop=4, decay=0.9))


def _config(changes: dict[str, Any], **working: Any) -> HierMemConfig:
    given = settings(**({"policy": "attention"} | working)).settings()
    return HierMemConfig(**{**given, **changes})


TIERS: dict[str, Callable[[], HierMemConfig]] = {
    "plain": lambda: _config({}),
    "shares": lambda: _config({}, head_shares=SHARES),
    "namm": lambda: _config({"namm": NETWORK, "evictor": "none"}, policy="namm", sinks=0, recent_share=0.25),
    "embeddings": lambda: _config({"summary": SummaryConfig(tokens=2, sensory=3, width=8, search=6)}),
    "mamba": lambda: _config({"mamba": HEADS}, policy="window", positions="compact"),
    "isolated": lambda: _config(
        {
            "segment": 16,
            "mamba": HEADS,
            "summary": SummaryConfig(tokens=2, sensory=3, width=8, query="half"),
        },
        policy="forget",
        positions="compact",
    ),
}


def model_of(tier: str) -> HierMemModel:
    """The tiny model of a tier."""
    model = HierMemModel(TIERS[tier](), backbone(), tokenizer()).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            draw = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            deviation = 0.02 if name.endswith(("decay", "scale")) else 0.2
            with torch.no_grad():
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=draw))
    model.name_or_path = "tiny"
    return model
