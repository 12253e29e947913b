"""Checkpoints: folders that count only once a marker, written last, says that they are complete."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hiermem.errors import InputError
from hiermem.retrieval.disk import sync

_COMPLETE, _STATE, _LOCK = "COMPLETE", "state.json", ".lock"


@contextmanager
def run_lock(folder: Path, writes: bool) -> Iterator[None]:
    """Be the only run that keeps checkpoints in ``folder``; the lock ends with the process, its file stays.

    Args:
        writes: whether this process keeps them (one of several).

    Raises:
        InputError: another run does.
    """
    if not writes:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another process is writing into {folder}: wait for it, or give another folder."
        ) from None
    try:
        yield
    finally:
        if [file.name for file in folder.iterdir()] == [_LOCK]:  # a refused run leaves nothing behind
            with suppress(OSError):
                (folder / _LOCK).unlink()
                folder.rmdir()
        lock.release()


def place(folder: Path, kind: str, number: int) -> Path:
    """Where checkpoint ``number`` is."""
    return folder / f"{kind}-{number:05d}"


def begin(path: Path) -> None:
    """Make an empty folder; whatever an interrupted run left there goes."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def write_state(path: Path, settings: dict[str, Any], **known: Any) -> None:
    """Keep in a checkpoint what is plain JSON, with the settings of the run."""
    (path / _STATE).write_text(json.dumps({"settings": settings, **known}), "utf-8")


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What `write_state` kept.

    Raises:
        InputError: it is damaged, or the run had other settings.
    """
    try:
        known: dict[str, Any] = json.loads((path / _STATE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if known["settings"] != json.loads(json.dumps(settings)):
        raise InputError(f"{path.parent} is of a run with other settings: give another folder.")
    return known


def damaged(path: Path, error: Exception) -> InputError:
    """What is said of a checkpoint that is complete and cannot be read."""
    return InputError(f"The checkpoint {path} is damaged ({error}): delete it.")


def finish(path: Path) -> None:
    """Mark a checkpoint as complete, when all its files are on the disk; older ones of its kind go."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            sync(file)
    (path / _COMPLETE).touch()
    sync(path)
    kind = path.name.rpartition("-")[0]
    for old in path.parent.glob(f"{kind}-*"):
        if old != path:
            shutil.rmtree(old)


def newest(folder: Path, kind: str) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint, and the names of newer ones that are not complete."""
    skipped: list[str] = []
    for path in sorted(folder.glob(f"{kind}-*"), reverse=True):
        if (path / _COMPLETE).exists():
            return path, skipped
        skipped.append(path.name)
    return None, skipped
