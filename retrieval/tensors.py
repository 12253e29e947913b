"""Tensors out of bytes that nobody vouches for: a safetensors file whose header is checked before it is used.

Readers of such files take more than memories hold: types without a counterpart in torch, and tensors of so
many dimensions that torch ends the process.
"""

import json
import math
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

MOST_DIMENSIONS = 8
MOST_HEADER_BYTES = 1 << 24
MOST_NUMBERS = 1 << 48
"""In one tensor."""

_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def parse(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        ValueError: it is not one, or holds what no memory holds; the message says what.
    """
    _check_header(data)
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError("it is not a safetensors file") from error
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise ValueError(f"{_short(name)} holds truth values other than 0 and 1")
    return tensors


def _check_header(data: bytes) -> None:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MOST_HEADER_BYTES):
        raise ValueError("it is not a safetensors file")
    try:
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not one of a safetensors file") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not one of a safetensors file")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(name, entry)


def _check_entry(name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header does not describe {_short(name)}")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"{_short(name)} is of a type that no memory holds")
    if not (_counts(shape) and _counts(span)) or len(shape) > MOST_DIMENSIONS or len(span) != 2:
        raise ValueError(f"{_short(name)} has a shape that no memory holds")
    if math.prod(max(size, 1) for size in shape) > MOST_NUMBERS:  # strides count empty dimensions too
        raise ValueError(f"{_short(name)} has a shape that no memory holds")
    if span[1] - span[0] != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"{_short(name)} has not as many bytes as its shape says")


def _counts(numbers: Any) -> bool:
    """Whether it is a list of whole numbers that a tensor may have as sizes."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MOST_NUMBERS for n in numbers)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name stands twice: two readers could take it for two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _short(name: str) -> str:
    """A name for a message, whatever it is made of."""
    return repr(name if len(name) <= 60 else name[:60] + "…")
