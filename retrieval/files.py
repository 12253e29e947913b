"""A directory of safetensors files under one manifest: saved whole or not at all, read verified.

The manifest names every data file with its size and SHA-256, and seals itself with a checksum. A save writes
new files beside the old ones and commits them by one rename of the manifest, so a crash leaves the old memory
or the new one. What never changes, a `Part`, is written once and kept. One writer at a time; readers take no
lock. Written for POSIX file systems.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from filelock import FileLock, Timeout

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryLockedError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.retrieval.disk import sync_folder
from hiermem.retrieval.manifest import (
    MANIFEST,
    RESTORE,
    Entry,
    is_logical,
    plainly,
    read_manifest,
    written,
)
from hiermem.retrieval.parts import Part, is_mapped
from hiermem.retrieval.regular_files import NotPlainError, check_plain, physical_memory, plain_file
from hiermem.retrieval.staging import NOTE, Staging, new_name, noted
from hiermem.retrieval.tensors import parse, views

_LOCK = ".lock"
_READ_ATTEMPTS = 5
_NOTHING: bytes | mmap.mmap = b""

_T = TypeVar("_T")


def save_directory(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    info: Mapping[str, Any],
    check: Callable[[], None] | None = None,
) -> None:
    """Save ``tensors``, one file for each logical name, and the JSON dict ``info`` at ``path``.

    A `Part` is called ``NAME.0``, ``NAME.1`` and so on; where it is there already, its file stays.

    ``check`` is called as the only writer, before anything is written; what it raises ends the save.

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
    with plainly(f"The memory at {directory} was not saved and is as it was before"):
        check_target(directory)
        _make_directory(directory)
        with writer_lock(directory):
            if check is not None:
                check()
            files = _write_and_commit(directory, tensors, info)
            with plainly(f"The memory at {directory} is saved but may not survive a power failure"):
                sync_folder(directory)
                sync_folder(directory.parent)
            for name, group in tensors.items():
                if isinstance(group, Part):
                    group.saved(directory / files[name].file, files[name])
            Staging(directory).sweep()


def load_directory(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
    """Return the tensors, on the CPU, and the info at ``path``: all of one save, all verified.

    Those of a `Part` stay on the disk and are mapped from there.

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


def load_part(path: str | os.PathLike[str], name: str) -> Mapping[str, torch.Tensor]:
    """Return the tensors of one logical name at ``path``, on the CPU, verified; the others are not looked at.

    Raises:
        MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: as `load_directory`.
    """
    directory = Path(path)
    if (entry := read_manifest(directory).files.get(name)) is None:
        raise MemoryCorruptError(f"The memory at {directory} has no file {name}; {RESTORE}")
    _check_size(directory, {name: entry})
    return _read_tensors(directory, name, entry)


def saved_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that the files of the memory at ``path`` take on the disk, the manifest among them.

    Raises:
        MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: as `load_directory`.
    """
    manifest = read_manifest(Path(path))
    return len(manifest.raw) + sum(entry.bytes for entry in manifest.files.values())


def read_info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the info at ``path`` alone, verified as the manifest is; files with tensors are not looked at.

    Raises:
        MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: as `load_directory`.
    """
    return read_manifest(Path(path)).info


def is_memory(path: str | os.PathLike[str]) -> bool:
    """Whether there is a memory at ``path``, also one that is newer than this version.

    Raises:
        MemoryFileError: the disk refused to say.
    """
    try:
        read_manifest(Path(path))
    except (MemoryMissingError, MemoryCorruptError):
        return False
    except MemoryTooNewError:
        return True
    return True


def verify_directory(path: str | os.PathLike[str]) -> list[str]:
    """Return every problem of the memory at ``path`` as a plain sentence; none means it is sound.

    Raises:
        MemoryMissingError: there is no memory at ``path``.
    """

    def check(directory: Path, name: str, entry: Entry) -> None:
        _read_tensors(directory, name, entry)

    try:
        problems = _read_all(Path(path), check)[2]
    except MemoryMissingError:
        raise
    except MemoryFileError as error:
        problems = [error]
    return [str(problem) for problem in problems]


def _read_all(
    directory: Path, read: Callable[[Path, str, Entry], _T]
) -> tuple[dict[str, _T], dict[str, Any], list[MemoryFileError]]:
    """Read every data file of one manifest; start again if a writer replaced it meanwhile."""
    for _ in range(_READ_ATTEMPTS):
        manifest = read_manifest(directory)
        _check_size(directory, manifest.files)
        contents: dict[str, _T] = {}
        problems: list[MemoryFileError] = []
        for name, entry in manifest.files.items():
            try:
                contents[name] = read(directory, name, entry)
            except MemoryFileError as error:
                problems.append(error)
        if not problems or read_manifest(directory).raw == manifest.raw:
            return contents, manifest.info, problems
    raise MemoryLockedError(
        f"The memory at {directory} was replaced again and again while it was read; "
        "try again when its writer pauses."
    )


def _check_size(directory: Path, files: Mapping[str, Entry]) -> None:
    total = sum(entry.bytes for name, entry in files.items() if not is_mapped(name))
    room = physical_memory()
    if room is not None and total > room:
        raise MemoryFileError(
            f"The memory at {directory} takes {total >> 20} MiB, which is more than this machine has "
            f"({room >> 20}): use a larger one."
        )


def _read_tensors(directory: Path, name: str, entry: Entry) -> Mapping[str, torch.Tensor]:
    """Parse exactly the bytes whose size and checksum were verified."""
    where, data = f"The file {entry.file} of the memory at {directory}", _NOTHING
    with plainly(f"{where} could not be read"):
        try:
            with plain_file(directory / entry.file) as file:
                if (size := file.size) == entry.bytes and size:
                    data = file.mapped() if is_mapped(name) else file.read()
        except NotPlainError as kind:
            raise MemoryCorruptError(f"{where} is {kind}, not a plain file; {RESTORE}") from None
        except FileNotFoundError:
            raise MemoryCorruptError(f"{where} is missing; {RESTORE}") from None
    if size < entry.bytes:
        sizes = f"{size} of {entry.bytes} bytes"
        raise MemoryCorruptError(f"{where} was cut short ({sizes} are left); {RESTORE}")
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise MemoryCorruptError(f"{where} was changed after it was saved; {RESTORE}")
    try:
        if isinstance(data, bytes):
            return parse(data)
        return Part(views(data), directory / entry.file, entry)
    except ValueError as error:
        raise MemoryCorruptError(f"{where} does not make sense ({error}); {RESTORE}") from error


def _check_request(tensors: Mapping[str, Mapping[str, torch.Tensor]], info: Mapping[str, Any]) -> None:
    """Refuse, before the disk is touched, what could not be read back as it was given."""
    for name, group in tensors.items():
        if not is_logical(name) or is_mapped(name) != isinstance(group, Part):
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
    written({}, info)  # whether it is too large


def check_target(directory: Path) -> None:
    """Refuse a path that holds anything but a memory, nothing, or what a killed first save left."""
    if directory.exists() and not directory.is_dir():
        raise MemoryFileError(f"{directory} is a file; give the path of a directory instead.")
    allowed = {_LOCK, NOTE, *noted(directory)}
    try:
        read_manifest(directory)
    except MemoryMissingError:
        if directory.exists() and not {p.name for p in directory.iterdir()} <= allowed:
            raise MemoryFileError(
                f"{directory} holds other files and no memory; give a new or empty directory."
            ) from None


def _make_directory(directory: Path) -> None:
    """Make the directory and its missing ancestors so that they outlast a power failure."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


@contextmanager
def only_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only writer at ``path`` from a load to a save; `save_directory` works within.

    Raises:
        MemoryLockedError: another writer holds the memory.
        MemoryFileError: ``path`` is a file or a directory of other things, or cannot be made.
    """
    directory = Path(path)
    with plainly(f"A memory at {directory} cannot be written"):
        check_target(directory)
        _make_directory(directory)
    with writer_lock(directory):
        try:
            yield
        finally:
            if not (directory / MANIFEST).exists():  # nothing was saved: leave nothing behind
                with suppress(OSError):
                    (directory / _LOCK).unlink()
                    directory.rmdir()


@contextmanager
def writer_lock(directory: Path) -> Iterator[None]:
    """Hold the folder of a memory, or of a library, as its only writer; the lock ends with the process, its
    file stays.

    Raises:
        MemoryLockedError: another writer holds it.
        MemoryFileError: it cannot be locked.
    """
    place = directory.resolve() / _LOCK
    lock = FileLock(place, timeout=0, is_singleton=True)  # a thread may nest it
    with plainly(f"The folder {directory} cannot be locked"):
        try:
            with suppress(FileNotFoundError):
                check_plain(place)
            lock.acquire()
        except NotPlainError as kind:
            raise MemoryFileError(f"The file {_LOCK} in {directory} is {kind}: remove it.") from None
        except Timeout:
            raise MemoryLockedError(
                f"Another process is writing at {directory}; wait for it to finish."
            ) from None
    try:
        yield
    finally:
        lock.release()


def _write_and_commit(
    directory: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], info: Mapping[str, Any]
) -> dict[str, Entry]:
    """Write and sync the new files, then rename the new manifest into place: the commit; what it names."""
    staging = Staging(directory)
    staging.sweep()
    present = _present(directory)
    files = {
        part: present[part]
        for part, group in tensors.items()
        if isinstance(group, Part) and group.is_there(present.get(part), directory)
    }
    names = {part: new_name(part, ".safetensors") for part in tensors if part not in files}
    temporary = new_name("manifest", ".tmp")
    try:
        staging.note([temporary, *names.values(), *(entry.file for entry in present.values())])
        files |= {part: _placed(staging, name, tensors[part]) for part, name in names.items()}
        manifest = staging.write(temporary, written(files, info))
        sync_folder(directory)
        os.replace(manifest, directory / MANIFEST)
    except BaseException:
        staging.sweep()
        raise
    return files


def _placed(staging: Staging, name: str, group: Mapping[str, torch.Tensor]) -> Entry:
    """A new file of tensors: the one that holds them already, by another name, or a written one."""
    if isinstance(group, Part) and group.entry is not None and group.link(staging.path(name)):
        return group.entry._replace(file=name)
    data = safetensors.torch.save({key: _plain_copy(t) for key, t in group.items()})
    staging.write(name, data)
    return Entry(name, len(data), hashlib.sha256(data).hexdigest())


def _present(directory: Path) -> dict[str, Entry]:
    """The data files of the memory that is there now, if any, by what it calls them."""
    try:
        return read_manifest(directory).files
    except MemoryMissingError:
        return {}


def _plain_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy on the CPU that shares no memory, as safetensors wants it."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
