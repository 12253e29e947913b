"""A library: many documents in one folder, asked together."""

from hiermem.library.catalogue import is_library
from hiermem.library.entries import Added, DocumentEntry, Reading
from hiermem.library.library import Library
from hiermem.library.workers import Workers

__all__ = ["Added", "DocumentEntry", "Library", "Reading", "Workers", "is_library"]
