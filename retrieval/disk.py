"""Files that outlast a power cut, and their hashes; imports nothing heavy."""

import errno
import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


def sync(*paths: Path) -> None:
    """Force files and folder entries to the disk, so that they survive a power cut."""
    if os.name == "nt":
        return  # Windows opens no folders, and syncs only files that are open for writing
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlast a power cut, where we may open it at all."""
    with suppress(PermissionError):
        sync(path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal digits, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: Path, size: int) -> None:
    """Find out now whether ``size`` bytes more can be written into a folder; nothing is left there.

    Raises:
        OSError: they cannot.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * min(size, 1 << 16))
        file.flush()
        if shutil.disk_usage(folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
