"""The conversion of a model from a GGUF file to the format of transformers."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hiermem.conversions import Conversion
from hiermem.errors import HierMemError, InputError, first_line
from hiermem.gguf_config import ROPE_FACTORS, check_settings, config_of
from hiermem.gguf_file import GgufFile, check_gguf
from hiermem.gguf_tokenizer import check_kept, check_splits, tokenizer_of
from hiermem.retrieval.disk import check_room, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

FORMAT = 1
"""Raised when the conversion writes something else, so that older folders are converted again."""


def gguf_folder(path: Path, sha256: str | None = None, progress: bool = True) -> Path:
    """The folder in the cache with the model of a GGUF file (`hiermem.conversions`), named by its SHA-256.

    Args:
        path: the file.
        sha256: what it must have; None: anything.
        progress: whether to say so on stderr when it is converted.

    Raises:
        InputError: the file is missing, damaged, cut off, a part, of another hash, or of a kind that cannot
            be converted; a package is missing; or the cache cannot be written.
    """
    check_gguf(path)
    digest = sha256_of(path)
    if sha256 is not None and sha256.lower() != digest:
        raise InputError(
            f"The GGUF file {path} has the SHA-256 {digest}, not {sha256}: give the file that is meant."
        )
    facts = {"format": FORMAT, "source": {"file": path.name, "sha256": digest}}
    conversion = Conversion(f"gguf-{digest}", facts, str(path), "a minute or more", partial(convert, path))
    return conversion.folder(progress)


def convert(gguf: Path, folder: Path, begin: Callable[[], None] = lambda: None) -> None:
    """Write the model of a GGUF file into an empty folder, in the format of transformers.

    Weights are dequantised in float32 and rounded to bf16, unless all of them are float32 in the file.

    Args:
        gguf: the file.
        folder: an empty folder.
        begin: called when the header was found to be right.

    Raises:
        InputError: a package is missing, the file cannot be read, or transformers cannot read such a model.
        OSError: there is not enough room.
    """
    file = GgufFile(gguf)
    if find_spec("accelerate") is None:
        raise InputError(
            "Converting a GGUF file needs the package accelerate, which is not installed; "
            "run `pip install accelerate`."
        )
    check_settings(file)
    check_splits(file)
    width = 4 if file.is_exact() else 2
    check_room(folder, width * sum(file.tensors().values()))
    begin()
    try:
        with redirect_stderr(io.StringIO()):  # progress bars that cannot be switched off
            tokenizer, config = tokenizer_of(file), config_of(file)
            _plain(_loaded(file, config)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            check_kept(tokenizer, folder)
    except (HierMemError, OSError):
        raise
    except BaseException as error:
        # Panics of tokenizers are no Exception; what stops a program is none either, and goes on.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"The model of {gguf} could not be converted ({first_line(error)}): give a causal language model "
            f"of a kind that transformers reads from GGUF files."
        ) from error
    for weights in folder.glob("*.safetensors"):  # only the owner may read them; a cache may be shared
        weights.chmod((folder / "config.json").stat().st_mode)


def _loaded(file: GgufFile, config: PreTrainedConfig) -> PreTrainedModel:
    """The model as transformers reads it from the file.

    Raises:
        InputError: weights are missing, or the file has some that transformers passes over.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model, info = AutoModelForCausalLM.from_pretrained(
        file.path.parent,
        gguf_file=file.path.name,
        config=config,
        dtype=torch.float32 if file.is_exact() else torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    missing = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
    if missing:
        raise InputError(
            f"The GGUF file {file.path} has no weights {', '.join(sorted(missing)[:3])}, or has them in "
            f"another shape: give a file with a whole model."
        )
    present = sum(weights for name, weights in file.tensors().items() if not _is_beside(name, config))
    known = sum(parameter.numel() for parameter in model.parameters())
    if present != known:
        raise InputError(
            f"The GGUF file {file.path} has {present} weights, and transformers' {type(model).__name__} has "
            f"{known}: they are not the same model, so give the model's own folder."
        )
    return model


def _is_beside(tensor: str, config: PreTrainedConfig) -> bool:
    """Whether a tensor of a file is no weight of transformers' model of its own: a setting, a copy of the
    embeddings, or of layers that predict later tokens."""
    _, _, layer = tensor.partition("blk.")
    number = layer.partition(".")[0]
    extra = number.isdigit() and int(number) >= config.num_hidden_layers
    copy = tensor == "output.weight" and config.tie_word_embeddings
    return extra or copy or tensor == ROPE_FACTORS


def _plain(loaded: PreTrainedModel) -> PreTrainedModel:
    """The same model without the marks of a GGUF file, with which transformers refuses to save it."""
    import torch

    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config)(**settings))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model
