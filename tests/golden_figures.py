"""What is compared before and after a change of structure or names: see `golden.py`.

Only what users type and what files hold stands here: settings by name, parameters by name, the model's public
methods, commands.
"""

import os
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from families import CONFIGS
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hiermem import HierMemConfig, HierMemModel

Figures = dict[str, Any]
"""Tensors, and what JSON holds, by name."""

DATA = Path(__file__).parent / "data"
OLD = DATA / "saved-2"
"""With the tokenizer of all tiny models, and a backbone that models of formats 1 and 2 name."""


class Unavailable(Exception):
    """A package that a figure needs is not here."""


# ---- models

MAMBA = {"groups": [[0, 1], [2, 0], [2, 1]], "taps": 3, "window": 6, "sinks": 2}
EMBEDDINGS = {"tokens": 2, "sensory": 3, "width": 8}
HALF = EMBEDDINGS | {"query": "half"}
SHARES = [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]
NETWORK = {"spectrogram": {"width": 8, "hop": 4, "decay": 0.9}}

Parts = dict[str, Any]
"""Settings by name; those of the working memory under `working`."""

ATTENTION: Parts = {"working": {"policy": "attention"}}
WINDOW: Parts = {"working": {"policy": "window", "positions": "compact"}}
NAMM: Parts = {"namm": NETWORK, "working": {"policy": "namm", "sinks": 0, "recent_share": 0.25}}
FORGET: Parts = {"segment": 16, "working": {"policy": "forget", "positions": "compact"}}
NONE: Parts = {"working": {"policy": "none", "positions": "absolute"}}
POLICIES = {"window": WINDOW, "attention": ATTENTION, "namm": NAMM, "forget": FORGET, "none": NONE}


def working(parts: Parts, **changes: Any) -> Parts:
    """The settings with others of the working memory."""
    return parts | {"working": parts["working"] | changes}


EVERYTHING = working(ATTENTION, head_shares=SHARES) | {"segment": 32, "summary": EMBEDDINGS, "mamba": MAMBA}
PUBLISHED = working(FORGET, sinks=0, update_interval=32, trained_range=80) | {"segment": 32, "chunk": 32}

TIERS: dict[str, tuple[str, Parts]] = {
    "absolute": ("llama", working(ATTENTION, positions="absolute")),
    "short-chunks": ("llama", ATTENTION | {"chunk": 8}),
    "long-intervals": ("llama", working(ATTENTION, update_interval=32, trained_range=80)),
    "shares": ("llama", working(ATTENTION, head_shares=SHARES)),
    "shares-namm": ("llama", working(NAMM, head_shares=SHARES)),
    "namm-within-its-budget": ("llama", NAMM | {"namm": NETWORK | {"threshold": None, "hidden": 0}}),
    "embeddings": ("llama", ATTENTION | {"segment": 32, "summary": EMBEDDINGS | {"search": 6}}),
    "embeddings-half": ("llama", FORGET | {"summary": HALF}),
    "hmt": ("llama", PUBLISHED | {"preset": "hmt"}),
    "mamba": ("llama", WINDOW | {"mamba": MAMBA}),
    "mamba-blind": ("llama", WINDOW | {"mamba": MAMBA | {"window": 0}}),
    "isolated": ("llama", FORGET | {"summary": HALF, "mamba": MAMBA}),
    "everything": ("llama", EVERYTHING),
    "adapter": ("llama", ATTENTION | {"segment": 32, "summary": EMBEDDINGS}),
    "gpt2-embeddings": ("gpt2", ATTENTION | {"segment": 32, "summary": EMBEDDINGS}),
    "gemma2-mamba": ("gemma2", WINDOW | {"mamba": MAMBA}),
    "opt-isolated": ("opt", FORGET | {"summary": HALF, "mamba": MAMBA}),
    "gpt-neox-mamba": ("gpt-neox", ATTENTION | {"mamba": MAMBA, "segment": 32, "summary": EMBEDDINGS}),
}


def configuration(parts: Parts) -> HierMemConfig:
    """Settings in proportion to the tiny models' range of 64 positions, or a preset, with those given."""
    if "preset" in parts:
        return HierMemConfig.preset(parts["preset"], **{k: v for k, v in parts.items() if k != "preset"})
    own = {"budget": 24, "sinks": 2, "update_interval": 16} | parts["working"]
    longterm = {"top_k": 2, "lexical": {"dim": 64}}
    return HierMemConfig(
        **({"chunk": 16, "segment": 48, "evictor": "none", "longterm": longterm} | parts | {"working": own})
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with a few merges, 320 tokens."""
    return PreTrainedTokenizerFast.from_pretrained(OLD / "backbone")


def model_of(
    backbone: Any,
    parts: Parts,
    reads: bool = False,
    adapter: bool = False,
    lively: bool = False,
    dtype: torch.dtype = torch.float32,
) -> HierMemModel:
    """A tiny model with parameters that are drawn by their names.

    Args:
        backbone: its configuration.
        reads: whether it knows texts, beside tokens.
        adapter: whether its backbone gets one.
        lively: whether its layers are strong enough for answers that are more than one token again and again;
            one that reads its own recall, too, would make much of a rounding.
    """
    backbone = deepcopy(backbone)
    backbone.vocab_size = 320 if reads else backbone.vocab_size
    own = AutoModelForCausalLM.from_config(backbone, dtype=torch.float32)
    model = HierMemModel(configuration(parts), own, tokenizer() if reads else None)
    if adapter:
        add_adapter(model)
    for name, parameter in model.named_parameters():
        if "norm" not in name and ".ln_" not in name:
            draw = torch.Generator().manual_seed(crc32(name.encode()))
            deviation = (
                0.02 if name.endswith(("decay", "scale")) else 0.6 if lively and ".layers." in name else 0.2
            )
            with torch.no_grad():
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=draw))
    model.requires_grad_(True)
    model.backbone.to(dtype)
    return model.eval()


def add_adapter(model: HierMemModel) -> None:
    """Put an adapter into the backbone.

    Raises:
        Unavailable: there is no PEFT, or none that this version of transformers takes.
    """
    try:
        from peft import LoraConfig

        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    except (ImportError, ValueError) as error:
        raise Unavailable("adapters need a version of PEFT that transformers takes") from error


# ---- logits, losses, gradients, what is generated


def ids_of(length: int, rows: int = 1) -> Tensor:
    """Random token ids ``[rows, length]`` without special tokens."""
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def told(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-likelihood of each next token ``[B, N - 1]``."""
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2).detach()


def computed(model: HierMemModel, length: int = 118) -> Figures:
    """What a model makes of an input: whole, in pieces, and of a padded batch."""
    ids, whole = ids_of(length), {}
    output = model(ids, labels=ids)
    output.loss.backward()
    rows = output.logits[0, [length // 5, length // 2, length - 1]].detach().clone()
    whole = {"loss": output.loss.detach(), "told": told(output.logits, ids), "logits": rows}
    graded = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    whole["gradients"] = torch.stack([_sampled(gradient) for gradient in graded.values()])
    whole["graded"] = list(graded)
    with torch.no_grad():
        return (
            whole
            | _in_pieces(model, ids)
            | _batched(model, ids_of(min(length, 70), 3))
            | _generated(model, ids)
        )


def _sampled(gradient: Tensor) -> Tensor:
    """Its norm and three of its values."""
    some = torch.linspace(0, gradient.numel() - 1, 3).long()
    return torch.cat((gradient.norm().view(1), gradient.flatten()[some]))


def _in_pieces(model: HierMemModel, ids: Tensor) -> Figures:
    cache, pieces, cuts = None, [], [0, 5, 37, 38, 70, ids.shape[1]]
    for start, end in pairwise(cuts):
        if start < end:
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache, pieces = output.past_key_values, [*pieces, output.logits]
    return {"in pieces": told(torch.cat(pieces, dim=1), ids)}


def _batched(model: HierMemModel, ids: Tensor) -> Figures:
    width = ids.shape[1]
    mask = (torch.arange(width) < torch.tensor([width, width * 2 // 3, width // 2]).unsqueeze(1)).long()
    figures = {}
    for side, own in (("right", mask), ("left", mask.flip(1))):
        logits = model(ids, attention_mask=own).logits
        figures[f"padded {side}"] = told(logits, ids) * (own[:, 1:] * own[:, :-1])
    if not (model.config.summary.query == "half" and model.config.mamba.groups):  # which reads row by row
        made = model.generate(ids, attention_mask=mask.flip(1), max_new_tokens=6, do_sample=False)
        figures["generated of rows"] = made[:, width:].int()
    return figures


def _generated(model: HierMemModel, ids: Tensor) -> Figures:
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return {"generated": made[0, ids.shape[1] :].int()}


def family(name: str) -> Figures:
    """A family under every policy; where nothing is evicted, it reads what it has positions for."""
    figures = {}
    for policy, parts in POLICIES.items():
        model, length = model_of(CONFIGS[name], parts), 40 if policy == "none" else 118
        own = computed(model, length)
        figures |= {f"{policy}: {figure}": value for figure, value in own.items()}
    return figures


def tier(name: str, dtype: torch.dtype = torch.float32) -> Figures:
    """A combination of memories."""
    known, parts = TIERS[name]
    return computed(model_of(CONFIGS[known], parts, adapter=name == "adapter", dtype=dtype))
