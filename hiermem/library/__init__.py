"""A library: many documents in one folder, asked together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hiermem.library.catalogue import is_library
from hiermem.library.entries import Added, DocumentEntry, Reading

if TYPE_CHECKING:
    from hiermem.library.library import Library
    from hiermem.library.workers import Workers

__all__ = ["Added", "DocumentEntry", "Library", "Reading", "Workers", "is_library"]

_HOME = {"Library": "hiermem.library.library", "Workers": "hiermem.library.workers"}


def __getattr__(name: str) -> Any:
    # Loaded on first use: to list documents takes no torch.
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'hiermem.library' has no attribute {name!r}")
