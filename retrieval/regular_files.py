"""Files of a folder that nobody vouches for: only plain ones are read, none through a link or without bound.

A link could lead out of the folder, a pipe never ends, and a file of holes is as large as it says it is.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HOLES_FROM = 1 << 24
"""Bytes from which a file must not be holes for the most part."""

LEAST_DATA = 1 / 16
"""Part of such a file that the disk must really hold."""

_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotPlainError(Exception):
    """Kind of a file that is not a plain one, in words."""


@dataclass(frozen=True)
class PlainFile:
    """A plain file that is open.

    Attributes:
        size: in bytes.
    """

    descriptor: int
    size: int

    def stream(self) -> BinaryIO:
        """Its bytes from where the last reader stopped; closing it leaves the file open."""
        return open(self.descriptor, "rb", closefd=False)

    def read(self) -> bytes:
        """Its first `size` bytes, fewer where it was cut meanwhile."""
        with self.stream() as handle:
            return handle.read(self.size)

    def mapped(self) -> mmap.mmap:
        """Its bytes as they lie on the disk, read where they are used; what is written there stays private.

        Raises:
            ValueError: it is empty.
        """
        return mmap.mmap(self.descriptor, self.size, access=mmap.ACCESS_COPY)


def check_plain(path: Path) -> None:
    """Refuse anything but a plain file, itself and not through a link.

    Raises:
        NotPlainError: it is something else.
        OSError: there is nothing, or it cannot be looked at.
    """
    _check(os.lstat(path).st_mode)


@contextmanager
def plain_file(path: Path) -> Iterator[PlainFile]:
    """Open a plain file for reading.

    Raises:
        NotPlainError: it is something else, or made of holes.
        OSError: it cannot be opened.
    """
    check_plain(path)  # before it is opened: opening alone does things to some devices
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # what the system has of them
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        _check(status.st_mode)
        size = status.st_size
        if size >= HOLES_FROM and _data_bytes(descriptor, size) < size * LEAST_DATA:
            raise NotPlainError("made of holes")
        yield PlainFile(descriptor, size)
    finally:
        os.close(descriptor)


def physical_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not say."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _check(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotPlainError(_KINDS.get(stat.S_IFMT(mode), "something else"))


def _data_bytes(descriptor: int, size: int) -> int:
    """Bytes of a file that are not holes, as far as the file system tells."""
    if not hasattr(os, "SEEK_DATA"):
        return size
    at = held = 0
    with suppress(OSError):  # behind the last data there is none
        while at < size:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            held += at - start
    os.lseek(descriptor, 0, os.SEEK_SET)
    return held
