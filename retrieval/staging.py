"""Staging of a save: what it writes and replaces is noted in the folder first; later saves sweep that alone.

Only names in the note are ever removed, whatever other files are called; so what a killed save left goes with
the next one, and a user's own file in the folder stays. The note is sealed: one that was cut short is of a
save that had made nothing else yet.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from hiermem.errors import MemoryFileError, MemoryMissingError
from hiermem.retrieval.disk import sync_folder
from hiermem.retrieval.manifest import is_given, read_manifest
from hiermem.retrieval.regular_files import NotPlainError, plain_file

NOTE = ".saving"

_HEAD = b"hiermem: files of a save that was not finished; the next save removes them\n"
_MOST_BYTES = 1 << 20


class Staging:
    """One save's files, in the order of things: `note`, `write` each, commit, `sweep`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, names: Iterable[str]) -> None:
        """Note what is about to be written and what that may replace; comes before anything is written."""
        body = _HEAD + "".join(f"{name}\n" for name in names).encode()
        self.write(NOTE, body + _seal(body))
        sync_folder(self._directory)

    def path(self, name: str) -> Path:
        """Where a file of that name goes."""
        return self._directory / name

    def write(self, name: str, data: bytes) -> Path:
        """Write and sync a new file."""
        path = self.path(name)
        with open(path, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        return path

    def sweep(self) -> None:
        """Remove what the note names and the manifest on disk does not, then the note.

        What cannot be removed now waits for the next save.
        """
        with suppress(OSError, MemoryFileError):
            names = noted(self._directory)
            try:
                named = {entry.file for entry in read_manifest(self._directory).files.values()}
            except MemoryMissingError:
                named = set()
            for name in names - named:
                (self._directory / name).unlink(missing_ok=True)
            (self._directory / NOTE).unlink(missing_ok=True)


def new_name(part: str, ending: str) -> str:
    """A name that no other file has."""
    return f"{part}-{secrets.token_hex(8)}{ending}"


def noted(directory: Path) -> set[str]:
    """The names that a save's note in the folder holds; none where there is no note, or a torn one.

    Raises:
        MemoryFileError: what is called like the note is another file.
        OSError: it cannot be read.
    """
    stranger = MemoryFileError(
        f"The file {NOTE} in {directory} is not of hiermem, which keeps notes under that name: move it away."
    )
    try:
        with plain_file(directory / NOTE) as file:
            raw = file.read() if file.size <= _MOST_BYTES else b"\0"
    except NotPlainError:
        raise stranger from None
    except (FileNotFoundError, NotADirectoryError):
        return set()
    if not (raw.startswith(_HEAD) or _HEAD.startswith(raw)):
        raise stranger
    body, seal = raw[:-65], raw[-65:]
    if len(raw) < len(_HEAD) + 65 or seal != _seal(body):
        return set()
    return {name for name in body[len(_HEAD) :].decode("ascii", "replace").split("\n") if is_given(name)}


def _seal(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n"
