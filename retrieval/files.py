"""A directory of safetensors files under one manifest: saved whole or not at all, read verified.

The manifest names every data file with its size and SHA-256, and seals itself with a checksum.
A save writes new files beside the old ones and commits them by one rename of the manifest, so a
crash leaves the old memory or the new one. One writer at a time; readers take no lock.

The name ``manifest.json``, its layout and its checksum stay the same in every format version, so
that this version can tell a newer memory from a damaged one. Written for POSIX file systems.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryLockedError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.retrieval.disk import sync

FORMAT = "hiermem-memory"
FORMAT_VERSION = 1

_MANIFEST = "manifest.json"
_LOCK = ".lock"
_READ_ATTEMPTS = 5
_LOGICAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_DATA = re.compile(_LOGICAL.pattern + r"-[0-9a-f]{16}\.safetensors")
_TEMPORARY = re.compile(r"manifest-[0-9a-f]{16}\.tmp")
_RESTORE = "restore the memory from a copy, or delete it and build it again."

_T = TypeVar("_T")


class _Entry(NamedTuple):
    """What the manifest says of one data file."""

    file: str
    bytes: int
    sha256: str


class _Manifest(NamedTuple):
    """A manifest whose checksum held; ``raw`` tells one save from another."""

    raw: bytes
    files: dict[str, _Entry]
    info: dict[str, Any]


def save_directory(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    info: Mapping[str, Any],
) -> None:
    """Save ``tensors``, one file for each logical name, and the JSON dict ``info`` at ``path``.

    When this returns, the new memory is on disk and the old one is gone. When it raises, the new
    files are gone and the old memory stands. Files in the directory that no save made are kept.

    Raises:
        InputError: a logical name is not a plain file name, or ``info`` is not plain JSON.
        MemoryLockedError: another writer holds the memory.
        MemoryCorruptError, MemoryTooNewError: the manifest there is damaged or newer than this
            version; it is not overwritten.
        MemoryFileError: ``path`` is a file or a directory of other things, or the disk refused;
            only where the message says so is the new memory in place all the same.
    """
    directory = Path(path)
    _check_request(tensors, info)
    with _plain(f"The memory at {directory} was not saved and is as it was before"):
        check_target(directory)
        _make_directory(directory)
        with _writer_lock(directory):
            _write_and_commit(directory, tensors, info)
            with _plain(f"The memory at {directory} is saved but may not survive a power failure"):
                _sync_directory(directory)
                _sync_directory(directory.parent)
            with suppress(OSError):  # what cannot be listed now waits for the next save
                _remove_unnamed(directory, [p for p in directory.iterdir() if _is_ours(p.name)])


def load_directory(
    path: str | os.PathLike[str],
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """Return the tensors, on the CPU, and the info at ``path``: all of one save, all verified.

    Raises:
        MemoryMissingError: there is no memory at ``path``.
        MemoryCorruptError: a file is missing, cut short or changed.
        MemoryTooNewError: the memory is in a newer format than this version reads.
        MemoryLockedError: a writer kept replacing the memory while it was read.
        MemoryFileError: the disk refused to give a file.
    """
    tensors, info, problems = _read_all(Path(path), _read_tensors)
    if problems:
        raise problems[0]
    return tensors, info


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the info at ``path`` alone, verified as the manifest is; files with tensors are not looked at.

    Raises:
        MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: as `load_directory`.
    """
    return _read_manifest(Path(path)).info


def verify_directory(path: str | os.PathLike[str]) -> list[str]:
    """Return every problem of the memory at ``path`` as a plain sentence; none means it is sound.

    Raises:
        MemoryMissingError: there is no memory at ``path``.
    """

    def check(directory: Path, entry: _Entry) -> None:
        _read_tensors(directory, entry)

    try:
        problems = _read_all(Path(path), check)[2]
    except MemoryMissingError:
        raise
    except MemoryFileError as error:
        problems = [error]
    return [str(problem) for problem in problems]


def _read_all(
    directory: Path, read: Callable[[Path, _Entry], _T]
) -> tuple[dict[str, _T], dict[str, Any], list[MemoryFileError]]:
    """Read every data file of one manifest; start again if a writer replaced it meanwhile."""
    for _ in range(_READ_ATTEMPTS):
        manifest = _read_manifest(directory)
        contents: dict[str, _T] = {}
        problems: list[MemoryFileError] = []
        for name, entry in manifest.files.items():
            try:
                contents[name] = read(directory, entry)
            except MemoryFileError as error:
                problems.append(error)
        if not problems or _read_manifest(directory).raw == manifest.raw:
            return contents, manifest.info, problems
    raise MemoryLockedError(
        f"The memory at {directory} was replaced again and again while it was read; "
        "try again when its writer pauses."
    )


def _read_tensors(directory: Path, entry: _Entry) -> dict[str, torch.Tensor]:
    """Parse exactly the bytes whose size and checksum were verified."""
    where = f"The file {entry.file} of the memory at {directory}"
    with _plain(f"{where} could not be read"):
        try:
            data = (directory / entry.file).read_bytes()
        except FileNotFoundError:
            raise MemoryCorruptError(f"{where} is missing; {_RESTORE}") from None
    if len(data) < entry.bytes:
        sizes = f"{len(data)} of {entry.bytes} bytes"
        raise MemoryCorruptError(f"{where} was cut short ({sizes} are left); {_RESTORE}")
    if len(data) > entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise MemoryCorruptError(f"{where} was changed after it was saved; {_RESTORE}")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise MemoryCorruptError(f"{where} is not a safetensors file; {_RESTORE}") from error


def _read_manifest(directory: Path) -> _Manifest:
    """Read and verify the manifest; the errors are those of ``load_directory``."""
    with _plain(f"The file {_MANIFEST} of the memory at {directory} could not be read"):
        try:
            raw = (directory / _MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise MemoryMissingError(
                f"There is no memory at {directory}; check the path, or save a memory there first."
            ) from None
    damaged = MemoryCorruptError(
        f"The file {_MANIFEST} of the memory at {directory} was changed or cut short; {_RESTORE}"
    )
    try:
        body = json.loads(raw)
        del body["checksum"]
        if _render(body) != raw or body["format"] != FORMAT:
            raise damaged
        if body["format_version"] > FORMAT_VERSION:
            raise MemoryTooNewError(
                f"The memory at {directory} is in format {body['format_version']} and this version "
                f"reads up to format {FORMAT_VERSION}; upgrade hiermem."
            )
        files = {name: _Entry(**entry) for name, entry in body["files"].items()}
        if not all(_DATA.fullmatch(e.file) and type(e.bytes) is int for e in files.values()):
            raise damaged
        return _Manifest(raw, files, dict(body["info"]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged from error


def _render(body: Mapping[str, Any]) -> bytes:
    """The only bytes that a manifest with this body may have, its checksum included."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    sealed = {**body, "checksum": hashlib.sha256(canonical.encode()).hexdigest()}
    return (json.dumps(sealed, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _check_request(tensors: Iterable[str], info: Mapping[str, Any]) -> None:
    """Refuse, before the disk is touched, what could not be read back as it was given."""
    for name in tensors:
        if not _LOGICAL.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a file of a memory; use letters, digits, '_', '-' and '.'."
            )
    try:
        same = json.loads(json.dumps(dict(info), allow_nan=False)) == dict(info)
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise InputError(
            "The info of a memory is not plain JSON; use only dicts with text keys, lists, "
            "text, finite numbers, booleans and None."
        )


def check_target(directory: Path) -> None:
    """Refuse a path that holds anything but a memory, nothing, or what a killed first save left."""
    if directory.exists() and not directory.is_dir():
        raise MemoryFileError(f"{directory} is a file; give the path of a directory instead.")
    try:
        _read_manifest(directory)
    except MemoryMissingError:
        names = {p.name for p in directory.iterdir()} if directory.exists() else set()
        if names and not (_LOCK in names and all(map(_is_ours, names - {_LOCK}))):
            raise MemoryFileError(
                f"{directory} holds other files and no memory; give a new or empty directory."
            ) from None


def _make_directory(directory: Path) -> None:
    """Make the directory and its missing ancestors so that they outlast a power failure."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_directory(made.parent)


@contextmanager
def only_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only writer at ``path`` from a load to a save; `save_directory` works within.

    Raises:
        MemoryLockedError: another writer holds the memory.
        MemoryFileError: ``path`` is a file or a directory of other things, or cannot be made.
    """
    directory = Path(path)
    with _plain(f"A memory at {directory} cannot be written"):
        check_target(directory)
        _make_directory(directory)
    with _writer_lock(directory):
        try:
            yield
        finally:
            if not (directory / _MANIFEST).exists():  # nothing was saved: leave nothing behind
                with suppress(OSError):
                    (directory / _LOCK).unlink()
                    directory.rmdir()


@contextmanager
def _writer_lock(directory: Path) -> Iterator[None]:
    """Hold the memory as its only writer; the lock ends with the process, its file stays."""
    lock = FileLock(directory.resolve() / _LOCK, timeout=0, is_singleton=True)  # a thread may nest it
    try:
        lock.acquire()
    except Timeout:
        raise MemoryLockedError(
            f"Another process is writing the memory at {directory}; wait for it to finish."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _write_and_commit(
    directory: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], info: Mapping[str, Any]
) -> None:
    """Write and sync the new files, then rename the new manifest into place: the commit."""
    made: list[Path] = []  # each is listed before it exists, so that a failure finds them all

    def write(name: str, data: bytes) -> Path:
        made.append(directory / name)
        with open(made[-1], "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        return made[-1]

    try:
        files: dict[str, dict[str, Any]] = {}
        for name, group in tensors.items():
            data = safetensors.torch.save({key: _plain_copy(t) for key, t in group.items()})
            file = write(f"{name}-{secrets.token_hex(8)}.safetensors", data).name
            files[name] = _Entry(file, len(data), hashlib.sha256(data).hexdigest())._asdict()
        body = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_version": _library_version(),
            "files": files,
            "info": dict(info),
        }
        temporary = write(f"manifest-{secrets.token_hex(8)}.tmp", _render(body))
        _sync_directory(directory)
        os.replace(temporary, directory / _MANIFEST)
    except BaseException:
        _remove_unnamed(directory, made)
        raise


def _plain_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors wants it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _library_version() -> str:
    try:
        return metadata.version("hiermem-torch")
    except metadata.PackageNotFoundError:
        return "0+unknown"


def _is_ours(name: str) -> bool:
    """Whether a save gives such names to the files that it may later remove."""
    return bool(_DATA.fullmatch(name) or _TEMPORARY.fullmatch(name))


def _remove_unnamed(directory: Path, candidates: Iterable[Path]) -> None:
    """Remove those candidates that the manifest on disk does not name; its word alone counts."""
    try:
        named = {entry.file for entry in _read_manifest(directory).files.values()}
    except MemoryMissingError:
        named = set()
    except MemoryFileError:
        return  # unreadable at this moment: the next save sweeps
    for file in candidates:
        if file.name not in named:
            with suppress(OSError):
                file.unlink()


def _sync_directory(directory: Path) -> None:
    """Make the names in a directory outlast a power failure, where we may open it at all."""
    with suppress(PermissionError):
        sync(directory)


@contextmanager
def _plain(what: str) -> Iterator[None]:
    """Turn an OSError into a MemoryFileError that says what failed, why, and what to do."""
    try:
        yield
    except MemoryFileError:
        raise
    except OSError as error:
        raise MemoryFileError(
            f"{what}: {error.strerror or error}; check the disk's space and the permissions, then try again."
        ) from error
