"""Tensors of a memory that never change once they are there: one file, written once.

They are in memory until they are saved. From then on they are mapped from their file, which every later save
keeps as it is, or links where it saves to another folder.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from hiermem.retrieval.manifest import Entry
from hiermem.retrieval.regular_files import NotPlainError, plain_file
from hiermem.retrieval.tensors import views

_OF_A_SERIES = re.compile(r".+\.\d+")


class Part(Mapping[str, Tensor]):
    """Tensors by name that are never written to.

    Args:
        tensors: what it holds.
        file: where they lie on the disk; None: nowhere yet.
        entry: what the manifest there says of that file.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], file: Path | None = None, entry: Entry | None = None
    ) -> None:
        self._tensors, self._file, self.entry = dict(tensors), file, entry

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def is_there(self, entry: Entry | None, folder: Path) -> bool:
        """Whether the file that a manifest in a folder names is the one that holds these tensors."""
        if entry is None or entry != self.entry:
            return False
        with suppress(OSError, NotPlainError), plain_file(folder / entry.file) as file:
            return file.size == entry.bytes
        return False

    def link(self, place: Path) -> bool:
        """Give the file that holds these tensors another name; False: there is none, or it cannot be."""
        if self._file is None or self.entry is None or not self.is_there(self.entry, self._file.parent):
            return False
        try:
            os.link(self._file, place, follow_symlinks=False)
        except OSError:  # another file system, or one without links
            return False
        return True

    def saved(self, file: Path, entry: Entry) -> None:
        """Take note that a file holds these tensors now, and give the memory that they took back."""
        with suppress(OSError, NotPlainError, ValueError):
            if self._file is None:
                with plain_file(file) as opened:
                    self._tensors = views(opened.mapped())
            self._file, self.entry = file, entry


def is_mapped(name: str) -> bool:
    """Whether what a manifest calls so is a `Part`: one of a series, ``NAME.0``, ``NAME.1``, …"""
    return bool(_OF_A_SERIES.fullmatch(name))
