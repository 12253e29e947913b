"""Checkpoints: folders that count only once a marker, written last, says that they are complete."""

import json
import shutil
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.retrieval.disk import sync

_COMPLETE, _STATE = "COMPLETE", "state.json"


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
