"""Documents whose reading was stopped before they came into a library."""

from pathlib import Path

INCOMING = "incoming"
"""Folder, within a library's, of documents that are being read."""

NAME = "name"
"""File, within the folder of such a document, that says how it is called."""


def unfinished_names(library: Path) -> list[str]:
    """Names of the documents in a library's folder whose reading was stopped."""
    names, incoming = set(), library / INCOMING
    for folder in incoming.iterdir() if incoming.is_dir() else ():
        try:
            names.add((folder / NAME).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):  # killed before it was written
            continue
    return sorted(names)
