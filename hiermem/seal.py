"""The seal of a saved model: a file with the size and hash of every other one.

It tells damage, not tampering: who changes a file can write a new seal.
"""

import hashlib
import json
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.model_files import SMALL, files_in, is_loaded
from hiermem.retrieval.disk import sha256_of

SEAL = "hiermem.seal.json"
CARD = "README.md"
REMEDY = "save the model again, or restore it from a copy"
"""The remedy in errors."""

# What transformers' tokenizers and calls of them leave behind without meaning anything else.
_VOLATILE = ("padding", "truncation", "name_or_path", "is_local", "local_files_only", "tokenizers_version")
_TOKENIZER = re.compile(r"(tokenizer|special_tokens|added_tokens|vocab).*\.json")


class NotSealedError(InputError):
    """A file of a saved model is missing, cut short or changed."""


def first_problem(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
    """The problem of the first file that is not as it was saved; None: there is none."""
    for name, entry in files.items():
        if name == CARD:  # prose, which anybody may edit
            continue
        path, where = folder / name, f"The file {name} of the model at {folder}"
        if not path.is_file():
            return f"{where} is missing: {REMEDY}"
        if path.stat().st_size == entry["bytes"] and sha256_of(path) == entry["sha256"]:
            continue
        if entry.get("content") is not None and _content(path) == entry["content"]:
            continue
        return f"{where} was changed or cut short after it was saved: {REMEDY}"
    return None


def first_stranger(folder: Path, files: Collection[str]) -> str | None:
    """The problem of the first file that no save wrote and that would be loaded all the same.

    A tokenizer beside a model that was saved without one is welcome: transformers' Trainer writes it.
    """
    for path in files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and is_loaded(name, tokenizer="tokenizer_config.json" in files):
            return f"The file {name} was added to the model at {folder} after it was saved: take it away"
    return None


def seal_entry(path: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if _TOKENIZER.fullmatch(path.name):  # which others write again, as transformers' Trainer does
        entry["content"] = _content(path)
    return entry


def _content(path: Path) -> str | None:
    """A hash of the settings in a tokenizer's file, however they are written; None: it cannot be read."""
    try:
        raw = path.read_bytes()
        values = json.loads(raw)
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode() + raw[-1:]).hexdigest()


def read_seal(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file, by the seal.

    Raises:
        NotSealedError: it was changed or cut short.
    """
    path = folder / SEAL
    damaged = NotSealedError(f"The file {SEAL} of the model at {folder} was changed: {REMEDY}.")
    try:
        status = path.stat()
        raw = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL else b""
        files = json.loads(raw)["files"]
        if render_seal(files) != raw or not all(
            _is_inside(name) and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for name, entry in files.items()
        ):
            raise damaged
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    return files


def render_seal(files: dict[str, dict[str, Any]]) -> bytes:
    """The only bytes that a seal of these files may have, its checksum included."""
    checksum = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    sealed = {"checksum": checksum, "files": files, "format": "hiermem-model"}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()


def _is_inside(name: str) -> bool:
    """Whether a name from a seal is one in the folder, as saves write them: whole and not hidden."""
    path = Path(name)
    visible = not any(part.startswith(".") for part in path.parts)
    return bool(path.parts) and visible and not path.is_absolute() and path.as_posix() == name
