"""Tensors out of bytes that nobody vouches for: a safetensors file whose header is checked before it is used.

Readers of such files take more than memories hold: types without a counterpart in torch, and tensors of so
many dimensions that torch ends the process.
"""

import io
import json
import math
import mmap
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

MOST_DIMENSIONS = 8
MOST_HEADER_BYTES = 1 << 24
MOST_NUMBERS = 1 << 48
"""In one tensor."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_OF_MEMORIES = _DTYPES.keys() - {"U64", "U32", "U16"}
OF_MODELS = _DTYPES.keys() - {"C64"}
"""Types of tensors that models have, as safetensors calls them."""


def parse(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Raises:
        ValueError: it is not one, or holds what no memory holds; the message says what.
    """
    check_header(io.BytesIO(data), len(data))
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise ValueError("it is not a safetensors file") from error
    return _with_truth(tensors)


def views(data: mmap.mmap) -> dict[str, Tensor]:
    """The tensors of a mapped safetensors file: they lie in the file, and are read where they are used.

    Raises:
        ValueError: as `parse`.
    """
    data.seek(0)
    header, first, tensors = check_header(data, len(data)), data.tell(), {}
    for name, entry in header.items():
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not (count := math.prod(shape)):
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        if (first + start) % dtype.itemsize or first + end > len(data):
            raise ValueError(f"{_short(name)} does not stand where such a tensor can")
        tensors[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=first + start).view(shape)
    return _with_truth(tensors)


def mapped_views(path: Path, file: BinaryIO, size: int) -> dict[str, Tensor]:
    """The tensors of a safetensors file as `views` has them, but no file stays open for them.

    Args:
        path: of the file.
        file: the same, open at its beginning.
        size: of the file, in bytes.

    Raises:
        ValueError: as `parse`.
    """
    header = check_header(file, size)
    first, tensors = file.tell(), dict[str, Tensor]()
    data = torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
    for name, entry in header.items():
        dtype, shape, (start, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
        if not math.prod(shape):
            tensors[name] = torch.empty(shape, dtype=dtype)
            continue
        if (first + start) % dtype.itemsize or first + end > size:
            raise ValueError(f"{_short(name)} does not stand where such a tensor can")
        tensors[name] = data[first + start : first + end].view(dtype).view(shape)
    return _with_truth(tensors)


def _with_truth(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, whose truth values are none but 0 and 1."""
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bool and tensor.numel() and int(tensor.view(torch.uint8).max()) > 1:
            raise ValueError(f"{_short(name)} holds truth values other than 0 and 1")
    return tensors


def check_header(
    file: BinaryIO | mmap.mmap,
    size: int,
    types: Collection[str] = _OF_MEMORIES,
    most: int = MOST_HEADER_BYTES,
) -> dict[str, Any]:
    """Refuse a safetensors file by what its header says, before anything else reads it; what it says, by the
    names of tensors.

    Args:
        file: at its beginning.
        size: of the file, in bytes.
        types: of tensors that are taken, as safetensors calls them.
        most: bytes that the header may have.

    Raises:
        ValueError: it is not such a file, or has tensors of other types or impossible shapes; the message
            says what.
    """
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, most):
        raise ValueError("it is not a safetensors file")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError("its header is not one of a safetensors file") from error
    if not isinstance(header, dict):
        raise ValueError("its header is not one of a safetensors file")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        _check_entry(name, entry, types)
    return header


def _check_entry(name: str, entry: Any, types: Collection[str]) -> None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"its header does not describe {_short(name)}")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in types:
        raise ValueError(f"{_short(name)} is of a type that is not taken here")
    if not (_counts(shape) and _counts(span)) or len(shape) > MOST_DIMENSIONS or len(span) != 2:
        raise ValueError(f"{_short(name)} has a shape that no tensor here has")
    if math.prod(max(size, 1) for size in shape) > MOST_NUMBERS:  # strides count empty dimensions too
        raise ValueError(f"{_short(name)} has a shape that no tensor here has")
    if span[1] - span[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
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
