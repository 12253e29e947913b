"""A saved model's folder: committed whole by one rename, sealed by hashes of its files, checked when read.

A save writes everything into a folder of its own inside and renames that: the commit. Its files then
move to their places, the seal last. Whoever opens the folder next finishes a save that was killed between. So
the folder holds the old model or the new one, whenever the save ends.
"""

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from hiermem.errors import InputError
from hiermem.model_files import check_files, stays
from hiermem.retrieval.disk import sha256_of, sync
from hiermem.seal import (
    CARD,
    REMEDY,
    SEAL,
    NotSealedError,
    first_problem,
    first_stranger,
    read_seal,
    render_seal,
    seal_entry,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BACKBONE = "backbone"
"""The folder with the configuration of a backbone that was saved whole, and the prefix of its weights."""

SAMPLE = "backbone_sample"
"""In `config.json`: values by which a backbone that was saved by its name is known again."""

_STAGING, _COMMITTED = ".hiermem-saving-", ".hiermem-saved"
_ATTEMPTS = 5


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
        for remains in folder.glob(f"{_STAGING}*"):  # of saves that were killed
            shutil.rmtree(remains, ignore_errors=True)
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
    """Write the seal of a save; a card in the folder that was edited stays, so the save has none."""
    files = {}
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        path.chmod(0o666 & ~_umask())  # safetensors lets only the owner read
        files[path.relative_to(staging).as_posix()] = seal_entry(path)
    card = folder / CARD
    if card.is_file() and _sealed_card(folder) != sha256_of(card):
        (staging / CARD).unlink(missing_ok=True)
        files.pop(CARD, None)
    (staging / SEAL).write_bytes(render_seal(files))


def _sealed_card(folder: Path) -> str | None:
    """The hash of the card that a save wrote, if one did and the seal is undamaged."""
    with suppress(NotSealedError):
        return str(read_seal(folder).get(CARD, {}).get("sha256"))
    return None


def _commit(staging: Path, folder: Path) -> None:
    """Rename a save to the name that counts as committed."""
    try:
        staging.rename(folder / _COMMITTED)
    except OSError:
        if not (folder / _COMMITTED).exists():
            raise
        finish(folder)  # another save was faster
        staging.rename(folder / _COMMITTED)
    sync(folder)


def finish(folder: Path) -> None:
    """Move the files of a committed save to their places, the seal last; does nothing where none is left.

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
    """Names of the files that a save in ``saved`` has for ``folder``, the seal last, and of outdated ones.

    Raises:
        InputError: it is no save of hiermem, or a name leads out of the folder.
    """
    foreign = InputError(f"{saved} is no save of hiermem: take it away.")
    new = _plain_files(saved, foreign)
    if not new:  # all was moved already
        return [], []
    try:
        sealed = read_seal(saved).keys()
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
    names: set[str] = set()
    folders = [folder]
    while folders:
        if not stat.S_ISDIR(folders[0].lstat().st_mode):
            raise otherwise
        for path in folders.pop(0).iterdir():
            with suppress(FileNotFoundError):  # another process finishes it too
                if stat.S_ISREG(path.lstat().st_mode):
                    names.add(path.relative_to(folder).as_posix())
                else:
                    folders.append(path)
    return names


def _outdated(folder: Path, sealed: Collection[str]) -> set[str]:
    """Files that the save before wrote and one of the files ``sealed`` did not."""
    if not stays(folder / SEAL, folder):
        raise InputError(f"{folder / SEAL} is a link that leads out of the folder: take it away.")
    try:
        old = set(read_seal(folder))
    except NotSealedError:  # saved before there were seals, or the seal is damaged
        usual = ("active.json", "adapter_config.json", "adapter_model.safetensors")
        old = {f"adapter/{name}" for name in usual}
    return old - set(sealed) - {CARD, SEAL}


def _check_place(folder: Path, name: str) -> None:
    """Refuse a name that goes through a link, or whose place is taken by anything but a file."""
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
        files = read_seal(folder)
        problem = first_problem(folder, files) or first_stranger(folder, files)
        if problem is None:
            return
        unchanged = (folder / SEAL).read_bytes() == raw and not (folder / _COMMITTED).exists()
        if unchanged or attempt == _ATTEMPTS - 1:
            raise NotSealedError(f"{problem}.")
        finish(folder)  # it was saved anew meanwhile


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask
