"""A GGUF file: its settings and the places of its weights, checked before anything is made of them."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError

if TYPE_CHECKING:
    from gguf import GGUFReader

SUFFIX = ".gguf"

_MAGIC = b"GGUF"
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


def is_gguf(name: str) -> bool:
    """Whether a model's name is the path of a GGUF file, which need not exist; a folder is none."""
    return name.lower().endswith(SUFFIX) and not Path(name).is_dir()


def check_gguf(path: Path) -> None:
    """Refuse what cannot be a GGUF file with a whole model, by a look at its beginning.

    Raises:
        InputError: there is no such file, it begins otherwise, or it is one of several parts.
    """
    if not path.exists():
        raise InputError(f"There is no GGUF file {path}: check the path.")
    if not path.is_file():
        raise InputError(f"{path} is no file: give a GGUF file, or a model's folder.")
    if _SHARD.search(path.name):
        raise _is_a_part(path)
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_MAGIC))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check the permissions.") from error
    if beginning != _MAGIC:
        raise InputError(f"{path} is not a GGUF file: download it again, or give a model of another kind.")


class GgufFile:
    """The header of a GGUF file.

    Args:
        path: the file.

    Raises:
        InputError: the package gguf is not installed, or the file is damaged, cut off, or a part of a model.

    Attributes:
        path: the file.
        architecture: what llama.cpp calls the kind of model.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _opened(path)
        if self.get("split.count", 1) > 1:
            raise _is_a_part(path)
        self.architecture = str(self.get("general.architecture", ""))
        if not self.architecture:
            raise InputError(f"{path} does not say what kind of model it holds: give another file.")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a setting: a number, a string, a truth value, or a list of them."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def settings(self) -> list[str]:
        """The names of the settings of this kind of model, without its name before them."""
        prefix = f"{self.architecture}."
        return [key.removeprefix(prefix) for key in self._reader.fields if key.startswith(prefix)]

    def setting(self, name: str, default: Any = None) -> Any:
        """The value of such a setting."""
        return self.get(f"{self.architecture}.{name}", default)

    def tensors(self) -> dict[str, int]:
        """The number of weights in every tensor, by its name."""
        return {tensor.name: prod(map(int, tensor.shape)) for tensor in self._reader.tensors}

    def values(self, name: str) -> list[float] | None:
        """The values of a small tensor of numbers; None: the file has none of that name."""
        found = [tensor for tensor in self._reader.tensors if tensor.name == name]
        return [float(value) for value in found[0].data.flatten()] if found else None

    def is_exact(self) -> bool:
        """Whether all weights are float32."""
        return all(tensor.tensor_type.name == "F32" for tensor in self._reader.tensors)


def _opened(path: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(
            "Converting a GGUF file needs the package gguf, which is not installed; run `pip install gguf`."
        ) from error
    check_gguf(path)
    try:
        return GGUFReader(path)
    except Exception as error:  # whatever indices and numbers lead to that are not there
        raise InputError(f"The GGUF file {path} is damaged or cut off: download it again.") from error


def _is_a_part(path: Path) -> InputError:
    return InputError(
        f"{path} is one of several parts of a model: join them by `llama-gguf-split --merge`, and give that."
    )
