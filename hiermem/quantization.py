"""Weights of a backbone in fewer bits, through transformers' own `quantization_config`.

Its linear layers are quantised one by one, without data. In int8 and int4, by torchao, the head stays as it
is; in float16 (`hiermem.half_weights`), for processors, it is one of them. Embeddings and all that is
hiermem's own stay as they are.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from hiermem.errors import InputError
from hiermem.half_weights import HalfWeightsConfig, check_processor

QUANTIZATIONS = ("float16", "int8", "int4")

GROUP = 32
"""Weights of a row that share a scale in int4; in int8 all of a row do."""


def quantization_config(name: str, device: torch.device) -> Any:
    """The configuration of a name, for `HierMemModel.from_pretrained(quantization_config=…)`.

    Args:
        name: one of `QUANTIZATIONS`.
        device: where the backbone will compute.

    Raises:
        InputError: there is no such name, it cannot be computed there, or torchao is missing.
    """
    if name not in QUANTIZATIONS:
        raise InputError(f"There is no quantization {name!r}: choose one of {', '.join(QUANTIZATIONS)}.")
    if name == "float16":
        check_processor(device)
        return HalfWeightsConfig()
    if name == "int4" and device.type != "cuda":
        raise InputError("torchao computes in int4 on a GPU alone: choose int8 here.")
    try:
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig
    except ImportError as error:
        raise InputError(
            f"The quantization {name} needs torchao: install hiermem-torch with the extra quantize."
        ) from error
    if name == "int8":
        return TorchAoConfig(Int8WeightOnlyConfig())
    return TorchAoConfig(Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d"))


def quantization_of(model: PreTrainedModel) -> str | None:
    """Quantization of a model's weights: one of `QUANTIZATIONS`, or the name of another configuration
    of torchao; None: nothing, or by another library."""
    config = getattr(model.config, "quantization_config", None)
    if isinstance(config, HalfWeightsConfig):
        return "float16"
    kind = getattr(config, "quant_type", None)
    if kind is None:
        return None
    names = {"Int8WeightOnlyConfig": "int8", "Int4WeightOnlyConfig": "int4"}
    return names.get(type(kind).__name__, type(kind).__name__)
