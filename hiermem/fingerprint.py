"""Short hashes of a model: what a memory must match, and whether a backbone is still what was loaded."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from hiermem.backbone import Backbone

_SAMPLES = 64
_tokenizers: WeakKeyDictionary[Any, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def backbone_hash(model: PreTrainedModel, adapter: Backbone) -> str:
    """SHA-256 over geometry, names, shapes and some evenly spaced values of every parameter."""
    digest = hashlib.sha256(f"{type(model).__name__} {adapter.trained_range}".encode())
    for shape in adapter.geometries:
        digest.update(f"{shape.window}".encode())
        if shape.rotary is not None:
            digest.update(f"{shape.rotary.interleaved}{shape.rotary.frequencies.tolist()}".encode())
    tensors = dict(sorted(plain_tensors(model.state_dict(keep_vars=True)).items()))
    for (name, tensor), values in zip(tensors.items(), _sampled(tensors.values()), strict=True):
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors, quantised ones as the tensors that they are made of, each by both names."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if is_traceable_wrapper_subclass(tensor):
            parts = tensor.__tensor_flatten__()[0]
            found |= plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in parts})
        else:
            found[name] = tensor
    return found


def _sampled(tensors: Any) -> list[Tensor]:
    """64 to 127 evenly spaced values of each tensor, float32 on the CPU; they leave the device at once."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    some = [values[:: max(values.numel() // _SAMPLES, 1)].float() for values in flat]
    if not some:
        return []
    return list(torch.cat(some).cpu().split([len(values) for values in some]))


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 over what a tokenizer does with a text."""
    if tokenizer is None:
        return "none"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return type(tokenizer).__name__
    # To write out the vocabulary takes half a second; what may change in place is looked at every time.
    steps = (backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder)
    state = (len(tokenizer), *map(repr, steps))
    if (cached := _tokenizers.get(tokenizer)) is not None and cached[0] == state:
        return cached[1]
    content = json.loads(backend.to_str())
    content["padding"] = content["truncation"] = None  # which calls leave behind
    value = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    _tokenizers[tokenizer] = state, value
    return value


@dataclass(frozen=True)
class WeightsDigest:
    """Tells the weights of a backbone from what they become, whichever value of them changes.

    Attributes:
        tensors: of each tensor by name its shape, dtype, some values and the sum of its bits.
        sample: a hash of some values, the same in every dtype and under all names.
    """

    tensors: Mapping[str, tuple[Any, ...]]
    sample: str

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "WeightsDigest":
        """The digest of named tensors; reads each value once."""
        tensors = plain_tensors(tensors)
        samples = _sampled(tensors.values())
        rounded = {s.bfloat16().float().numpy().tobytes() for s in samples}
        return cls(
            {
                name: (
                    tuple(t.shape),
                    str(t.dtype),
                    hashlib.sha256(s.numpy().tobytes()).digest(),
                    _bit_sum(t),
                )
                for (name, t), s in zip(tensors.items(), samples, strict=True)
            },
            hashlib.sha256(b"".join(sorted(rounded))).hexdigest()[:16],
        )

    def changed(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether ``tensors`` are others than those of the digest; what is not here at all is passed over.

        ZeRO-3 leaves a process with nothing of the tensors that are not trained.
        """
        tensors = plain_tensors(tensors)
        here = {name: tensor for name, tensor in tensors.items() if not is_elsewhere(tensor)}
        now = WeightsDigest.of(here).tensors
        return tensors.keys() != self.tensors.keys() or any(self.tensors[name] != now[name] for name in now)


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether other processes hold the tensor's values (DeepSpeed's ZeRO-3)."""
    return not tensor.numel() and len(tensor.shape) == 1


def _bit_sum(tensor: Tensor) -> int:
    """The sum of a tensor's bits as whole numbers, modulo 2^64."""
    flat = tensor.detach().contiguous().flatten()
    for width in (torch.int64, torch.int32, torch.int16, torch.uint8):
        ratio = width.itemsize
        if flat.numel() * flat.element_size() % ratio == 0 and (
            flat.storage_offset() * flat.element_size() % ratio == 0
        ):
            return int(flat.view(width).sum(dtype=torch.int64))
    raise AssertionError("every tensor is made of bytes")
