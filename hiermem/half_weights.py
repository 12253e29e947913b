"""Linear layers whose weights stand in float16 and are multiplied in float32 by the processor (FBGEMM).

Half the bytes of float32 for each token that is decoded. Weights that were trained in bfloat16 or float16
lose nothing but the last bits of those below 6e-5; inputs, sums and results are float32.

Dimension names: O outputs, I inputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from hiermem.errors import InputError

_METHOD = "hiermem_float16"
_SAMPLES = 64


def check_processor(device: torch.device) -> None:
    """Refuse a device that does not multiply weights in float16 by float32.

    Raises:
        InputError: it is a GPU, or this is no x86 processor.
    """
    if device.type != "cpu" or "fbgemm" not in torch.backends.quantized.supported_engines:
        raise InputError("The quantization float16 is for x86 processors: a GPU computes in float16.")


class HalfLinear(nn.Module):
    """A linear layer for inference on the processor.

    Its state has some values of the weights alone, by which it is told from others.

    Args:
        linear: the layer whose place it takes, float32.
    """

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.detach()
        self.out_features, self.in_features = weight.shape
        bias = None if linear.bias is None else linear.bias.detach()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        flat = weight.flatten()
        self.register_buffer("sample", flat[:: max(flat.numel() // _SAMPLES, 1)].half())

    @property
    def weight(self) -> Tensor:
        """The weights ``[O, I]`` float32, made anew at each call."""
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight

    def forward(self, input: Tensor) -> Tensor:
        """Outputs ``[…, O]`` of ``[…, I]``, both float32.

        Raises:
            InputError: gradients are wanted, or the model was taken elsewhere.
        """
        if input.dtype != torch.float32 or input.device.type != "cpu":
            raise InputError("Weights in float16 are multiplied in float32 on the processor: load them anew.")
        if input.requires_grad and torch.is_grad_enabled():
            raise InputError("Weights in float16 have no gradients: train without this quantization.")
        output: Tensor = torch.ops.quantized.linear_dynamic_fp16(input, self._packed)
        return output


@register_quantization_config(_METHOD)
class HalfWeightsConfig(QuantizationConfigMixin):
    """For ``from_pretrained(quantization_config=…)``: every `torch.nn.Linear` becomes a `HalfLinear`."""

    def __init__(self, quant_method: str = _METHOD) -> None:
        self.quant_method = quant_method


@register_quantizer(_METHOD)
class HalfWeightsQuantizer(HfQuantizer):
    """Puts a `HalfLinear` in the place of every linear layer once the weights are loaded."""

    requires_calibration = False

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
        if len(names) < 2:  # a head at most: GPT-2 has layers of its own kind
            raise InputError(f"{type(model).__name__} has no layers to keep in float16: leave that out.")
        for name in names:  # one after the other: the float32 weights of each go at once
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, HalfLinear(model.get_submodule(name)))
            model.all_tied_weights_keys.pop(f"{name}.weight", None)
        model.requires_grad_(False)
        return model

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return False
