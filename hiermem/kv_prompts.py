"""The trained prompt in front of recalled keys and values that a model has: its own, or what ships for it."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from hiermem.config import HierMemConfig
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.kv.prompt import KVPrompt
from hiermem.shipped import shipped, undamaged

FILE = "kv_prompt.safetensors"


def of_backbone(config: HierMemConfig, geometries: Sequence[LayerGeometry]) -> KVPrompt | None:
    """The prompt that a configuration asks for: what ships for the backbone, or zeros where that has another
    length, for parameters that are still to be loaded; None: none.

    Raises:
        InputError: the backbone cannot have one, or what ships for it is damaged.
    """
    tokens = config.kv_prompt.tokens
    if tokens == 0:
        return None
    path = None if config.mamba.groups else shipped(config.backbone, FILE)
    found = None if path is None else _loaded(path, geometries)
    if tokens is None or (found is not None and found.num_tokens == tokens):
        return found
    return KVPrompt(tokens, geometries)


def _loaded(path: Path, geometries: Sequence[LayerGeometry]) -> KVPrompt:
    """The prompt in a file."""
    with undamaged(path, "The prompt of keys and values"):
        tensors = load_file(path)
        prompt = KVPrompt(tensors["keys"].shape[1], geometries)
        prompt.load_state_dict(tensors)
    return prompt
