"""The manifest of a memory on disk: its only word about which files it is made of, sealed with a checksum.

The name ``manifest.json``, its layout and its checksum stay the same in every format version, so that this
version can tell a newer memory from a damaged one. The checksum tells damage, not tampering: who changes a
manifest can compute it anew, so nothing in it is believed that was not checked.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.retrieval.regular_files import NotPlainError, plain_file

FORMAT = "hiermem-memory"
FORMAT_VERSION = 4
"""1: search keys of words as they stand. 2: search keys without n-grams; never indexed alone. 3: without
places."""

MANIFEST = "manifest.json"
MOST_BYTES = 1 << 22
"""Of a manifest; it holds settings and names, no data."""

RESTORE = "restore the memory from a copy, or delete it and build it again."

_LOGICAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_DATA = re.compile(_LOGICAL.pattern + r"-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"manifest-[0-9a-f]{16}\.tmp")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {"format", "format_version", "library_version", "files", "info"}


class Entry(NamedTuple):
    """Size and hash of one data file."""

    file: str
    bytes: int
    sha256: str


class Manifest(NamedTuple):
    """A manifest whose checksum held; ``raw`` tells one save from another."""

    raw: bytes
    files: dict[str, Entry]
    info: dict[str, Any]


def is_logical(name: str) -> bool:
    """Whether it can name a part of a memory."""
    return bool(_LOGICAL.fullmatch(name))


def is_given(name: str) -> bool:
    """Whether saves give such names to the files that they write."""
    return bool(_DATA.fullmatch(name) or _TEMPORARY.fullmatch(name))


def read_manifest(directory: Path) -> Manifest:
    """Read and verify the manifest of a memory.

    Raises:
        MemoryMissingError: there is none.
        MemoryCorruptError: it was changed or cut short, or is no plain file.
        MemoryTooNewError: it is of a newer format.
        MemoryFileError: the disk refused to give it.
    """
    where = f"The file {MANIFEST} of the memory at {directory}"
    with plainly(f"{where} could not be read"):
        try:
            with plain_file(directory / MANIFEST) as file:
                raw = file.read() if file.size <= MOST_BYTES else b""
        except NotPlainError as kind:
            raise MemoryCorruptError(f"{where} is {kind}, not a plain file; {RESTORE}") from None
        except (FileNotFoundError, NotADirectoryError):
            raise MemoryMissingError(
                f"There is no memory at {directory}; check the path, or save a memory there first."
            ) from None
    damaged = MemoryCorruptError(f"{where} was changed or cut short; {RESTORE}")
    try:
        body = json.loads(raw)
        del body["checksum"]
        if render(body) != raw or body["format"] != FORMAT:
            raise damaged
        version = body["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise MemoryTooNewError(
                f"The memory at {directory} is in format {version} and this version "
                f"reads up to format {FORMAT_VERSION}; upgrade hiermem."
            )
        files = {name: Entry(**entry) for name, entry in body["files"].items()}
        if type(version) is not int or version < 1 or set(body) != _FIELDS or not _makes_sense(files):
            raise damaged
        return Manifest(raw, files, dict(body["info"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged from error


def _makes_sense(files: Mapping[str, Entry]) -> bool:
    """Whether every part has a name, a plain file of its own in the folder, a size and a hash."""
    return len({entry.file for entry in files.values()}) == len(files) and all(
        is_logical(name)
        and bool(_DATA.fullmatch(entry.file))
        and type(entry.bytes) is int
        and entry.bytes >= 0
        and bool(_SHA256.fullmatch(entry.sha256))
        for name, entry in files.items()
    )


def written(files: Mapping[str, Entry], info: Mapping[str, Any]) -> bytes:
    """The manifest of a new save.

    Raises:
        InputError: it would be too large to be read again.
    """
    body = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": _library_version(),
        "files": {name: entry._asdict() for name, entry in files.items()},
        "info": dict(info),
    }
    raw = render(body)
    if len(raw) > MOST_BYTES:
        raise InputError(f"The info of a memory may take {MOST_BYTES >> 20} MiB, not {len(raw) >> 20}.")
    return raw


def render(body: Mapping[str, Any]) -> bytes:
    """The only bytes that a manifest with this body may have, its checksum included."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    sealed = {**body, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}
    return (json.dumps(sealed, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _library_version() -> str:
    try:
        return metadata.version("hiermem-torch")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@contextmanager
def plainly(what: str) -> Iterator[None]:
    """Turn an OSError into a MemoryFileError that says what failed, why, and what to do."""
    try:
        yield
    except MemoryFileError:
        raise
    except OSError as error:
        raise MemoryFileError(
            f"{what}: {error.strerror or error}; check the disk's space and the permissions, then try again."
        ) from error
