"""A saved model's folder: committed whole by one rename, sealed by hashes of its files, checked when read.

A save writes everything into a folder of its own inside and renames that: the commit. Its files then
move to their places, the seal last; whoever opens the folder next finishes what a killed save left half
moved. So the folder holds the old model or the new one, whenever the save ends. The seal tells damage, not
tampering: who changes a file can write a new seal.
"""

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hiermem.errors import InputError
from hiermem.model_files import SMALL, check_files, files_in, is_loaded, stays
from hiermem.retrieval.disk import sha256_of, sync

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BACKBONE = "backbone"
"""The folder with the configuration of a backbone that was saved whole, and the prefix of its weights."""

SAMPLE = "backbone_sample"
"""In `config.json`: values by which a backbone that was saved by its name is known again."""

REMEDY = "save the model again, or restore it from a copy"
SEAL = "hiermem.seal.json"
CARD = "README.md"
_STAGING, _COMMITTED = ".hiermem-saving-", ".hiermem-saved"
_ATTEMPTS = 5
# What transformers' tokenizers and calls of them leave behind without meaning anything else.
_VOLATILE = ("padding", "truncation", "name_or_path", "is_local", "local_files_only", "tokenizers_version")
_TOKENIZER = re.compile(r"(tokenizer|special_tokens|added_tokens|vocab).*\.json")


class NotSealedError(InputError):
    """A file of a saved model is missing, cut short or changed."""


# ---- writing


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder whose files replace the saved model's in ``folder`` when the block ends well.

    A user's own files stay, and so does a card that was edited.

    Raises:
        InputError: the disk refused; what was there before is as it was.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish(folder)
        for left in folder.glob(f"{_STAGING}*"):  # of saves that were killed
            shutil.rmtree(left, ignore_errors=True)
        staging = Path(mkdtemp(dir=folder, prefix=_STAGING))
        try:
            yield staging
            _seal(folder, staging)
            _moves(folder, staging)  # refused before anything is committed
            sync(*[path for path in staging.rglob("*") if path.is_file()], staging)
            _commit(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        finish(folder)
    except OSError as error:
        raise InputError(
            f"The model was not saved to {folder} ({error.strerror or error}): check the disk's space and "
            f"the permissions."
        ) from error


def _seal(folder: Path, staging: Path) -> None:
    files = {}
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        path.chmod(0o666 & ~_umask())  # safetensors lets only the owner read
        files[path.relative_to(staging).as_posix()] = _entry(path)
    card = folder / CARD
    if card.is_file() and _sealed_card(folder) != sha256_of(card):
        (staging / CARD).unlink(missing_ok=True)
        files.pop(CARD, None)
    (staging / SEAL).write_bytes(_render(files))


def _sealed_card(folder: Path) -> str | None:
    """The hash of the card that a save wrote, if one did and the seal is undamaged."""
    with suppress(NotSealedError):
        return str(_read_seal(folder).get(CARD, {}).get("sha256"))
    return None


def _commit(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder / _COMMITTED)
    except OSError:
        if not (folder / _COMMITTED).exists():
            raise
        finish(folder)  # another save was faster
        staging.rename(folder / _COMMITTED)
    sync(folder)


def finish(folder: Path) -> None:
    """Move what a save committed to its place, the seal last; does nothing where nothing is left to move.

    Raises:
        InputError: something is left, and the folder cannot be written, or no save of hiermem left it. Then
            nothing is touched.
    """
    committed = folder / _COMMITTED
    if not os.path.lexists(committed):
        return
    try:
        new, old = _moves(folder, committed)
        for name in old:
            (folder / name).unlink(missing_ok=True)
        for name in new:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process finishes it too
                os.replace(committed / name, folder / name)
        shutil.rmtree(committed, ignore_errors=True)
        sync(folder)
    except OSError as error:
        if not os.path.lexists(committed):  # another process has finished it
            return
        raise InputError(
            f"A save to {folder} was interrupted and cannot be finished ({error.strerror or error}): load it "
            f"once where the folder can be written."
        ) from error


def _moves(folder: Path, saved: Path) -> tuple[list[str], list[str]]:
    """Files that a save in ``saved`` has for ``folder``, the seal last, and those that it makes outdated.

    Raises:
        InputError: it is no save of hiermem, or a name leads out of the folder.
    """
    foreign = InputError(f"{saved} is no save of hiermem: take it away.")
    new = _plain_files(saved, foreign)
    if not new:  # all was moved already
        return [], []
    try:
        sealed = _read_seal(saved).keys()
    except NotSealedError:
        if SEAL in new and not os.path.lexists(saved / SEAL):  # another process has finished it
            return [], []
        raise foreign from None
    if new - sealed != {SEAL}:
        raise foreign
    old = _outdated(folder, sealed)
    for name in sorted(new | old):
        _check_place(folder, name)
    return [*sorted(new - {SEAL}), SEAL], sorted(old)


def _plain_files(folder: Path, otherwise: InputError) -> set[str]:
    """Names of the files in a folder and the folders in it.

    Raises:
        InputError: ``otherwise``, where anything is neither a folder nor a plain file.
    """
    found: set[str] = set()
    left = [folder]
    while left:
        if not stat.S_ISDIR(left[0].lstat().st_mode):
            raise otherwise
        for path in left.pop(0).iterdir():
            with suppress(FileNotFoundError):  # another process finishes it too
                if stat.S_ISREG(path.lstat().st_mode):
                    found.add(path.relative_to(folder).as_posix())
                else:
                    left.append(path)
    return found


def _outdated(folder: Path, sealed: Collection[str]) -> set[str]:
    """Files that the save before wrote and one of the files ``sealed`` did not."""
    if not stays(folder / SEAL, folder):
        raise InputError(f"{folder / SEAL} is a link that leads out of the folder: take it away.")
    try:
        old = set(_read_seal(folder))
    except NotSealedError:  # saved before there were seals, or the seal is damaged
        usual = ("active.json", "adapter_config.json", "adapter_model.safetensors")
        old = {f"adapter/{name}" for name in usual}
    return old - set(sealed) - {CARD, SEAL}


def _check_place(folder: Path, name: str) -> None:
    """Refuse to touch a file by a name that goes through a link, or what is no file."""
    for place in list(Path(name).parents)[:-1]:
        if os.path.lexists(folder / place) and not stat.S_ISDIR((folder / place).lstat().st_mode):
            raise InputError(f"{folder / place} is no folder but in the place of one: take it away.")
    path = folder / name
    if os.path.lexists(path) and not (stat.S_ISREG(mode := path.lstat().st_mode) or stat.S_ISLNK(mode)):
        raise InputError(f"{path} is no file but in the place of one: take it away.")


# ---- reading


def check(folder: Path, sealed: bool | None = None) -> None:
    """Refuse a saved model of which a file was changed, cut short or lost, leads out or cannot be a model's.

    Args:
        sealed: whether there must be a seal; None where that is not known.

    Raises:
        NotSealedError: it is not as it was saved.
        InputError: a file is none that a model is made of.
    """
    finish(folder)
    check_files(folder, inside=True)
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if os.path.lexists(folder / name):  # which transformers takes for an adapter of the backbone
            raise InputError(f"The file {name} is none of the model at {folder}: take it away.")
    if not (folder / SEAL).is_file():
        if sealed:
            raise NotSealedError(f"The file {SEAL} of the model at {folder} is missing: {REMEDY}.")
        return
    for attempt in range(_ATTEMPTS):
        raw = (folder / SEAL).read_bytes()
        files = _read_seal(folder)
        problem = _first_problem(folder, files) or _first_stranger(folder, files)
        if problem is None:
            return
        settled = (folder / SEAL).read_bytes() == raw and not (folder / _COMMITTED).exists()
        if settled or attempt == _ATTEMPTS - 1:
            raise NotSealedError(f"{problem}.")
        finish(folder)  # it was saved anew meanwhile


def _first_problem(folder: Path, files: dict[str, dict[str, Any]]) -> str | None:
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


def _first_stranger(folder: Path, files: Collection[str]) -> str | None:
    """What is wrong with a file that no save wrote and that would be loaded all the same.

    A tokenizer beside a model that was saved without one is welcome: transformers' Trainer writes it.
    """
    for path in files_in(folder):
        name = path.relative_to(folder).as_posix()
        if name not in files and is_loaded(name, tokenizer="tokenizer_config.json" in files):
            return f"The file {name} was added to the model at {folder} after it was saved: take it away"
    return None


# ---- the seal


def _entry(path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    if _TOKENIZER.fullmatch(path.name):  # which others write again, as transformers' Trainer does
        entry["content"] = _content(path)
    return entry


def _content(path: Path) -> str | None:
    """A hash of what a tokenizer's file says, however it is written down; None where it cannot be read."""
    try:
        raw = path.read_bytes()
        values = json.loads(raw)
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in _VOLATILE}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode() + raw[-1:]).hexdigest()


def _read_seal(folder: Path) -> dict[str, dict[str, Any]]:
    """What the seal says of each file.

    Raises:
        NotSealedError: it was changed or cut short.
    """
    path = folder / SEAL
    damaged = NotSealedError(f"The file {SEAL} of the model at {folder} was changed: {REMEDY}.")
    try:
        status = path.stat()
        raw = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size <= SMALL else b""
        files = json.loads(raw)["files"]
        if _render(files) != raw or not all(
            _is_inside(name) and type(entry["bytes"]) is int and isinstance(entry["sha256"], str)
            for name, entry in files.items()
        ):
            raise damaged
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged from error
    return files


def _render(files: dict[str, dict[str, Any]]) -> bytes:
    """The only bytes that a seal of these files may have, its checksum included."""
    checksum = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    sealed = {"checksum": checksum, "files": files, "format": "hiermem-model"}
    return (json.dumps(sealed, sort_keys=True, indent=1) + "\n").encode()


def _is_inside(name: str) -> bool:
    """Whether a name from a seal is one in the folder, as saves write them: whole and not hidden."""
    path = Path(name)
    visible = not any(part.startswith(".") for part in path.parts)
    return bool(path.parts) and visible and not path.is_absolute() and path.as_posix() == name


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
