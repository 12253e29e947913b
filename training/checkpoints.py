"""Checkpoints: folders that count only once a marker, written last, says that they are complete."""

import shutil
from pathlib import Path

from hiermem.retrieval.disk import sync

_COMPLETE = "COMPLETE"


def begin(folder: Path, kind: str, number: int) -> Path:
    """An empty folder for checkpoint ``number``; whatever an interrupted run left in it goes."""
    path = folder / f"{kind}-{number:05d}"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


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
