"""Models that are converted once into the user's cache, each in a folder whose files are known by hash."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.retrieval.disk import sha256_of, sync

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Conversion:
    """How one model comes into the cache (``HIERMEM_CACHE``, else ``$XDG_CACHE_HOME/hiermem``, else
    ``~/.cache/hiermem``).

    Attributes:
        name: of its folder there.
        facts: the head of its manifest: `format`, a number that is raised when ``write`` comes to write
            something else; `source`, with the `sha256` of what is converted; and what else is to be known.
        what: the model, for messages.
        duration: how long it takes, for messages.
        write: writes the files of the model into an empty folder; calls its second argument, which says so
            on stderr, when it has looked at what it converts and begins.
    """

    name: str
    facts: Mapping[str, Any]
    what: str
    duration: str
    write: Callable[[Path, Callable[[], None]], None]

    def folder(self, progress: bool = True) -> Path:
        """The folder with the model.

        It is made by the first call, which says so in a line on stderr if ``progress``. Later calls check
        every file against its SHA-256, and convert again if one was changed. Safe to call from several
        processes at once.

        Raises:
            InputError: the cache cannot be written, or what ``write`` raises.
        """
        folder = cache_dir() / self.name
        if not self.is_intact(folder):
            try:
                self._make(folder, progress)
            except OSError as error:
                raise InputError(
                    f"{self.what} cannot be written to {folder.parent} ({error}); free some "
                    "disk space there, or set HIERMEM_CACHE to a folder that can be written."
                ) from error
        return folder

    def is_intact(self, folder: Path) -> bool:
        """Whether the folder holds this conversion, complete and unchanged."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            same_format = manifest["format"] == self.facts["format"]
            if not same_format or manifest["source"]["sha256"] != self.facts["source"]["sha256"]:
                return False
            files = [(folder / name, entry) for name, entry in manifest["files"].items()]
            sizes_match = all(path.stat().st_size == entry["bytes"] for path, entry in files)
            return sizes_match and all(sha256_of(path) == entry["sha256"] for path, entry in files)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return False  # no manifest, or not one that this module wrote

    def _make(self, folder: Path, progress: bool) -> None:
        """Convert into ``folder`` unless another process does so first; all of it appears at once."""
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        # One fixed name, used under the lock only: what a killed process left there is swept up here.
        partial = folder.with_name(folder.name + ".partial")
        with FileLock(folder.with_name(folder.name + ".lock")):
            if self.is_intact(folder):
                return
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                self.write(partial, self._say if progress else lambda: None)
                self._write_manifest(partial)
                sync(*partial.iterdir(), partial)
                if folder.exists():
                    shutil.rmtree(folder)
                partial.rename(folder)
                sync(folder.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def _say(self) -> None:
        sys.stderr.write(f"hiermem: converting {self.what} once, {self.duration}...\n")

    def _write_manifest(self, folder: Path) -> None:
        """Record what the model is, where it came from, and the size and hash of each file."""
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in sorted(folder.iterdir())
        }
        text = json.dumps({**self.facts, "files": files}, indent=2) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8")


def cache_dir() -> Path:
    """The folder that hiermem may keep converted files in; it need not exist."""
    if folder := os.environ.get("HIERMEM_CACHE"):
        return Path(folder).expanduser().absolute()
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache).absolute() / "hiermem"
    return Path.home() / ".cache" / "hiermem"
