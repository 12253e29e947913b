"""Every error that hiermem raises on purpose: one plain sentence, what was wrong and what to do.

This module imports nothing of hiermem, and every other module may import it.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class HierMemError(Exception):
    """Base of all errors that hiermem raises on purpose."""


class InputError(HierMemError, ValueError):
    """A file, a text or a setting that was given cannot be used."""


class BackboneUnsupportedError(HierMemError):
    """The backbone lacks something that hiermem needs, such as exchangeable attention."""


class NonFiniteError(HierMemError, ArithmeticError):
    """A state that would have been kept holds NaN or infinity."""


class MemoryFileError(HierMemError):
    """A memory on disk cannot be used; the subclasses say why."""


class MemoryMissingError(MemoryFileError, FileNotFoundError):
    """There is no memory, or no complete one, at the given path."""


class MemoryCorruptError(MemoryFileError):
    """A file of the memory is missing, cut short or changed."""


class MemoryIncompatibleError(MemoryFileError):
    """The memory was made with another backbone, tokenizer or dtype."""


class MemoryTooNewError(MemoryFileError):
    """The memory was written in a newer format than this version reads."""


class MemoryLockedError(MemoryFileError):
    """Another process is writing this memory."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, without its full stop; its type where it has no text."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


@contextmanager
def plainly(what: str, remedy: str) -> Iterator[None]:
    """Turn any error of a library about damaged or foreign files into one sentence.

    Args:
        what: the beginning of the sentence.
        remedy: its end.

    Raises:
        InputError: in place of any other error.
    """
    try:
        yield
    except HierMemError:
        raise
    except BaseException as error:
        # Panics of tokenizers are no Exception; what stops a program is none either, and goes on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{what} ({first_line(error)}): {remedy}.") from error
