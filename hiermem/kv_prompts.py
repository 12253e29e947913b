"""The trained prompt in front of recalled keys and values that a model has: its own, or what ships for it."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from hiermem.bundled import BUNDLED_MODELS
from hiermem.config import HierMemConfig
from hiermem.errors import InputError, first_line
from hiermem.memory.cache.layer import LayerGeometry
from hiermem.memory.kv.prompt import KVPrompt

FILE = "kv_prompt.safetensors"
_WEIGHTS = Path(__file__).parent / "weights"


def of_backbone(config: HierMemConfig, geometries: Sequence[LayerGeometry]) -> KVPrompt | None:
    """The prompt that a configuration asks for: what ships for the backbone, or zeros where that has another
    length, for parameters that are still to be loaded; None: none.

    Raises:
        InputError: the backbone cannot have one, or what ships for it is damaged.
    """
    tokens = config.kv_prompt.tokens
    if tokens == 0:
        return None
    ships = config.backbone in BUNDLED_MODELS and not config.mamba.groups
    shipped = _loaded(_WEIGHTS / config.backbone / FILE, geometries) if ships else None
    if tokens is None or (shipped is not None and shipped.num_tokens == tokens):
        return shipped
    return KVPrompt(tokens, geometries)


def _loaded(path: Path, geometries: Sequence[LayerGeometry]) -> KVPrompt | None:
    """The prompt in a file, if there is one."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        prompt = KVPrompt(tensors["keys"].shape[1], geometries)
        prompt.load_state_dict(tensors)
    except (OSError, SafetensorError, LookupError, RuntimeError) as error:
        raise InputError(
            f"The prompt of keys and values at {path} is damaged ({first_line(error)}): install hiermem "
            f"again."
        ) from error
    return prompt
