"""The encoder of the backbone's states that a model has: its own, or what ships for it."""

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.memory.state_encoder import StateEncoder, StateEncoderConfig
from hiermem.shipped import shipped, undamaged

FILE = "state_encoder.safetensors"


def of_backbone(config: HierMemConfig, layers: int, width: int) -> StateEncoder | None:
    """The encoder that a configuration asks for: what ships for the backbone, or zeros where that is another,
    for parameters that are still to be loaded; None: none.

    Args:
        layers: how many the backbone has.
        width: of its states.

    Raises:
        InputError: the backbone has no such layer, or what ships for it is damaged.
    """
    chosen = config.state_encoder
    if chosen.layers == []:
        return None
    if chosen.layers and chosen.layers[-1] > layers:
        raise InputError(
            f"The backbone has {layers} layers, and a state encoder is to look at layer {chosen.layers[-1]}."
        )
    path = None if config.mamba.groups else shipped(config.backbone, FILE)
    found = None if path is None else _loaded(path, width)
    if chosen.layers is None or (found is not None and found.config == chosen):
        return found
    return StateEncoder(chosen, width)


def _loaded(path: Path, width: int) -> StateEncoder:
    """The encoder in a file."""
    with undamaged(path, "The state encoder"):
        with safe_open(path, framework="pt") as file:
            numbers = [int(layer) for layer in file.metadata()["layers"].split()]
        tensors = load_file(path)
        hidden, out = (tensors[f"{name}.weight"].shape[0] for name in ("inner", "direct"))
        encoder = StateEncoder(StateEncoderConfig(numbers, hidden, out), width)
        encoder.load_state_dict(tensors)
    return encoder
