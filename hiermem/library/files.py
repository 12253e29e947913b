"""Files that are to be added to a library, and how their documents are called."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from hiermem.bundled import BUNDLED_DOCUMENTS
from hiermem.documents import Document, is_readable, open_document, open_named
from hiermem.errors import InputError

LONGEST_NAME = 500
"""Characters of a document's name."""


def found_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
) -> list[tuple[str, Path]]:
    """Files by the names of their documents: each file that is given, and those in folders whose kind can be
    read; links in folders are not followed, and what begins with a dot is left out.

    A document is called by its path from the folder that was given, with that folder's name, or by the path
    as it was given; of an absolute one or one that leads upwards, by its last part.

    Raises:
        InputError: there is no such file, a folder holds none that can be read, or two have one name.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[str, Path] = {}
    for path in map(Path, given):
        for name, file in _named(path):
            if found.setdefault(name, file) != file:
                raise InputError(
                    f"Two files would be called {name!r} ({found[name]} and {file}): give them from a folder "
                    f"above both."
                )
    return list(found.items())


def _named(path: Path) -> Iterator[tuple[str, Path]]:
    name = _name_of(path)
    if not path.is_dir():
        if not path.exists() and not _is_bundled(path):
            raise InputError(f"There is no file {os.fspath(path)!r}: check the path.")
        yield name, path
        return
    files = sorted(_readable(path))
    if not files:
        raise InputError(f"The folder {os.fspath(path)!r} holds no file that can be read: give another one.")
    for file in files:
        relative = file.relative_to(path).as_posix()
        yield (f"{name}/{relative}" if name else relative), file


def _readable(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            file = Path(root, name)
            if not name.startswith(".") and not file.is_symlink() and is_readable(file):
                yield file


def opened(name: str, path: Path) -> Document:
    """The document that lies at a path, or the bundled one that is called so.

    Raises:
        InputError: it cannot be read.
    """
    return open_named(name) if _is_bundled(path) else open_document(path, name)


def _is_bundled(path: Path) -> bool:
    """Whether there is no such file, but a document that comes with hiermem."""
    return os.fspath(path) in BUNDLED_DOCUMENTS and not path.exists()


def _name_of(path: Path) -> str:
    parts = path.parts
    if path.is_absolute() or ".." in parts:
        return path.resolve().name
    return path.as_posix() if parts else ""


def checked_name(name: str) -> str:
    """A name that a document may have.

    Raises:
        InputError: it is empty, too long, or cannot be printed in a line.
    """
    if not name.strip() or len(name) > LONGEST_NAME or not name.isprintable():
        raise InputError(
            f"A document cannot be called {name[:60]!r}: give a name of 1 to {LONGEST_NAME} characters that "
            f"can be printed."
        )
    return name
