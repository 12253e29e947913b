"""hiermem: a hierarchy of memories for any Hugging Face causal language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiermem.asking import Answer, AskConfig
    from hiermem.config import HierMemConfig
    from hiermem.errors import HierMemError
    from hiermem.memory.longterm import LongTermConfig
    from hiermem.memory.state import MemoryState
    from hiermem.memory.working import WorkingMemoryConfig
    from hiermem.model import HierMemModel
    from hiermem.passages import Source

__all__ = [
    "Answer",
    "AskConfig",
    "HierMemConfig",
    "HierMemError",
    "HierMemModel",
    "LongTermConfig",
    "MemoryState",
    "Source",
    "WorkingMemoryConfig",
]

_HOME = {
    "Answer": "hiermem.asking",
    "AskConfig": "hiermem.asking",
    "HierMemConfig": "hiermem.config",
    "HierMemError": "hiermem.errors",
    "HierMemModel": "hiermem.model",
    "LongTermConfig": "hiermem.memory.longterm",
    "MemoryState": "hiermem.memory.state",
    "Source": "hiermem.passages",
    "WorkingMemoryConfig": "hiermem.memory.working",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `hiermem --help` and the inner packages do not wait for transformers.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hiermem' has no attribute {name!r}")
