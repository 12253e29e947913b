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
    """Lock ``folder`` for the one run that keeps checkpoints there.

    The lock ends with the process; its file stays.

    Args:
        folder: folder of the checkpoints.
        writes: whether this process keeps checkpoints (one of several).

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
    """The folder of checkpoint ``number``."""
    return folder / f"{kind}-{number:05d}"


def begin(path: Path) -> None:
    """Make an empty folder in place of one that an interrupted run left."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def write_state(path: Path, settings: dict[str, Any], **values: Any) -> None:
    """Write values that are plain JSON into a checkpoint, with the settings of the run."""
    (path / _STATE).write_text(json.dumps({"settings": settings, **values}), "utf-8")


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The values that `write_state` wrote.

    Raises:
        InputError: it is damaged, or the run had other settings.
    """
    try:
        state: dict[str, Any] = json.loads((path / _STATE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error
    if state["settings"] != json.loads(json.dumps(settings)):
        raise InputError(f"{path.parent} is of a run with other settings: give another folder.")
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """The error for a checkpoint that is complete and cannot be read."""
    return InputError(f"The checkpoint {path} is damaged ({error}): delete it.")


def finish(path: Path) -> None:
    """Mark a checkpoint as complete once all its files are on the disk, and delete older ones of its kind."""
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
