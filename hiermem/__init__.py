"""hiermem: a hierarchy of memories for any Hugging Face causal language model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hiermem.registering import register_with_transformers

if TYPE_CHECKING:
    __version__: str
    from hiermem.answer import Answer
    from hiermem.answer_stream import AnswerStream
    from hiermem.asking_config import AskConfig
    from hiermem.chat import Chat
    from hiermem.config import HierMemConfig
    from hiermem.errors import HierMemError
    from hiermem.library import Library
    from hiermem.memory.hmt.module import SummaryConfig
    from hiermem.memory.longterm import LongTermConfig
    from hiermem.memory.mamba.module import MambaConfig
    from hiermem.memory.policies import NammConfig
    from hiermem.memory.state import MemoryState
    from hiermem.memory.working_config import WorkingMemoryConfig
    from hiermem.model import HierMemModel
    from hiermem.passages import Source

__all__ = [
    "Answer",
    "AnswerStream",
    "AskConfig",
    "Chat",
    "HierMemConfig",
    "HierMemError",
    "HierMemModel",
    "Library",
    "LongTermConfig",
    "MambaConfig",
    "MemoryState",
    "NammConfig",
    "Source",
    "SummaryConfig",
    "WorkingMemoryConfig",
]

_HOME = {
    "Answer": "hiermem.answer",
    "AnswerStream": "hiermem.answer_stream",
    "AskConfig": "hiermem.asking_config",
    "Chat": "hiermem.chat",
    "HierMemConfig": "hiermem.config",
    "HierMemError": "hiermem.errors",
    "HierMemModel": "hiermem.model",
    "Library": "hiermem.library",
    "LongTermConfig": "hiermem.memory.longterm",
    "MambaConfig": "hiermem.memory.mamba.module",
    "MemoryState": "hiermem.memory.state",
    "NammConfig": "hiermem.memory.policies",
    "Source": "hiermem.passages",
    "SummaryConfig": "hiermem.memory.hmt.module",
    "WorkingMemoryConfig": "hiermem.memory.working_config",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: `hiermem --help` and the inner packages do not wait for transformers.
    if name == "__version__":
        from importlib import metadata

        return metadata.version("hiermem-torch")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hiermem' has no attribute {name!r}")


register_with_transformers()
