"""Checks of a stranger's files before a library opens them as parts of a model.

Libraries read pipes and devices without end, load code and files that a setting names, and fail on tensors
that no model has.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hiermem.errors import InputError, first_line
from hiermem.retrieval.regular_files import NotPlainError, PlainFile, physical_memory, plain_file
from hiermem.retrieval.tensors import OF_MODELS, check_header

SMALL = 1 << 26
"""Bytes that a file of settings may have; vocabularies and weights may be larger."""

TEMPLATES = "additional_chat_templates"

# Files that transformers and PEFT open by name; a tokenizer's apart, which others write again.
_LOADED = re.compile(
    r"(generation_|adapter_)?config\.json|active\.json|chat_template\.(json|jinja)"
    r"|((adapter_)?model.*\.safetensors|(adapter|pytorch)_model(-\d+-of-\d+)?\.bin)(\.index\.json)?"
)
_TOKENIZER = re.compile(
    r"(tokenizer|special_tokens|added_tokens|vocab|tekken).*\.json|(merges|vocab|dict).*\.txt"
    r"|.*\.(model|tiktoken|spm)"
)

_READ = (".json", ".jinja", ".model", ".safetensors", ".spm", ".tiktoken", ".txt")
_OBJECTS = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer_config.json")
_LARGE_JSON = ("tokenizer.json", "vocab.json", "tekken.json")
_VOCABULARY = min(1 << 30, physical_memory() or 1 << 30)
_HEADER = 1 << 27  # bytes: models have more tensors than memories

# Settings of PEFT that choose layers by regular expressions, and an expression that is a plain name.
_EXPRESSIONS = ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern")
_NAME = re.compile(r"\^?[\w.-]+\$?")


def check_files(folder: Path, *, inside: bool) -> None:
    """Refuse files that no model has, before a library opens them: pipes, devices, nonsense without bound.

    Args:
        folder: the model's folder.
        inside: whether links and settings must not lead out of the folder.

    Raises:
        InputError: a file is no plain one, too large, leads elsewhere, or its header makes no sense.
    """
    for path in files_in(folder):
        if path.suffix not in _READ:
            continue
        where = f"{path.relative_to(folder)} of the model at {folder}"
        if inside and not stays(path, folder):
            raise InputError(f"{where} is a link that leads out of the folder: put the file itself there.")
        with _opened(path, where) as file:
            if path.suffix == ".safetensors":
                _check_header(file, where)
            elif path.suffix == ".json" and path.name not in _LARGE_JSON:
                _check_settings(_parsed(file, where), path.name, where, inside)


def is_loaded(name: str, *, tokenizer: bool) -> bool:
    """Whether transformers or PEFT open a file of that name in a model's folder without being told to.

    Args:
        name: path in the folder.
        tokenizer: whether those of a tokenizer count, too.
    """
    folder, _, file = name.rpartition("/")
    templates = folder == TEMPLATES and file.endswith(".jinja")
    return templates or bool(_LOADED.fullmatch(file) or (tokenizer and _TOKENIZER.fullmatch(file)))


def read_json(path: Path) -> Any:
    """The content of a JSON file of bounded size.

    Raises:
        InputError: it is no JSON, or too large.
    """
    with _opened(path, str(path)) as file:
        return _parsed(file, str(path))


def check_tensor_file(path: Path) -> None:
    """Refuse a file of safetensors that no model has, before a library opens it.

    Raises:
        InputError: it is no plain file, or its header makes no sense.
        FileNotFoundError: there is none.
    """
    path.stat()
    with _opened(path, str(path)) as file:
        _check_header(file, str(path))


@contextmanager
def _opened(path: Path, where: str) -> Iterator[PlainFile]:
    """A plain file, maybe through links, of no more bytes than its kind may have."""
    try:
        with plain_file(Path(os.path.realpath(path))) as file:
            most = _most(path.name)
            if most is not None and file.size > most:
                raise InputError(f"{where} has {file.size} bytes, too many for such a file.")
            yield file
    except NotPlainError as kind:
        raise InputError(f"{where} is {kind}, not a plain file: leave it out, or take another.") from None
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror}).") from error


def _most(name: str) -> int | None:
    """Most bytes of a file of that name; None: weights, or a file that nothing loads."""
    if name.endswith((".json", ".jinja")) and name not in _LARGE_JSON:
        return SMALL
    return _VOCABULARY if _TOKENIZER.fullmatch(name) else None


def _parsed(file: PlainFile, where: str) -> Any:
    """The JSON that a file holds."""
    try:
        return json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read ({first_line(error)}).") from error


def files_in(folder: Path) -> list[Path]:
    """The files in the folders that models are read from."""
    places = [folder, folder / "backbone", folder / TEMPLATES, folder / "adapter"]
    places += [path for path in folder.glob("adapter/*") if path.is_dir()]
    return sorted(path for place in places if place.is_dir() for path in place.iterdir() if not path.is_dir())


def _check_settings(values: Any, name: str, where: str, inside: bool) -> None:
    """Refuse settings that name code or files elsewhere."""
    if not isinstance(values, dict):
        if name in _OBJECTS:
            raise InputError(f"{where} holds no settings.")
        return
    if inside and name == "adapter_config.json":
        _check_names(values, where)
    refused = [key for key, value in values.items() if _leads_elsewhere(key, value, inside)]
    if name.endswith(".index.json"):
        shards = values.get("weight_map")
        if not isinstance(shards, dict) or not all(
            isinstance(s, str) and _is_plain(s) for s in shards.values()
        ):
            refused.append("weight_map")
    if refused:
        raise InputError(f"{where} leads elsewhere by {refused[0]!r}: take that out if you trust it.")


def _check_names(values: dict[str, Any], where: str) -> None:
    """Refuse regular expressions by which PEFT would choose layers: some take for ever."""
    for key in ("target_modules", "exclude_modules", *_EXPRESSIONS):
        value = values.get(key)
        names = [value] if isinstance(value, str) else list(value or ()) if key in _EXPRESSIONS else []
        if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
            raise InputError(f"{where} chooses layers by an expression in {key!r}: list their names there.")


def _leads_elsewhere(key: str, value: Any, inside: bool) -> bool:
    """Whether a setting names code on the hub, a module to import, or, if ``inside``, a file outside."""
    if key == "megatron_config":
        return value is not None
    if not isinstance(value, str):
        return False
    named = key == "transformers_weights" or (inside and key.endswith("_file") and "_map_" not in key)
    return (key.endswith("_implementation") and "/" in value) or (named and not _is_plain(value))


def _check_header(file: PlainFile, where: str) -> None:
    """Refuse tensors of types without a counterpart in torch, or of too many dimensions."""
    try:
        with file.stream() as stream:
            check_header(stream, file.size, OF_MODELS, _HEADER)
    except ValueError as error:
        raise InputError(f"{where} is damaged ({error}): restore it from a copy.") from error


def stays(path: Path, folder: Path) -> bool:
    """Whether a path ends in the folder, or in the files of the hub's cache that the folder is a view of."""
    home, real = folder.resolve(), path.resolve()
    blobs = home.parent.parent / "blobs"
    return real.is_relative_to(home) or (home.parent.name == "snapshots" and real.is_relative_to(blobs))


def _is_plain(name: str) -> bool:
    return bool(name) and name == Path(name).name
