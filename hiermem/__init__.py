"""hiermem: a hierarchy of memories for any Hugging Face causal language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiermem.asking import Answer, Source
    from hiermem.config import HierMemConfig
    from hiermem.errors import HierMemError
    from hiermem.memory.state import MemoryState
    from hiermem.model import HierMemModel

__all__ = ["Answer", "HierMemConfig", "HierMemError", "HierMemModel", "MemoryState", "Source"]

_HOME = {
    "Answer": "hiermem.asking",
    "HierMemConfig": "hiermem.config",
    "HierMemError": "hiermem.errors",
    "HierMemModel": "hiermem.model",
    "MemoryState": "hiermem.memory.state",
    "Source": "hiermem.asking",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `hiermem --help` and the inner packages do not wait for transformers.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hiermem' has no attribute {name!r}")
