"""Passages found by meaning: embeddings of a sentence encoder (Sentence-BERT, arXiv 1908.10084)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hiermem.eval.methods.base import register_method
from hiermem.eval.methods.passages import Index, Passages
from hiermem.retrieval.encoder import MINILM, encoder_path, sentence_encoder

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel


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
        self._embeddings = self._encoder.embed(texts).numpy()

    def scores(self, question: str) -> NDArray[np.floating]:
        """How well each text fits, ``[n]`` float32 in -1..1."""
        found: NDArray[np.floating] = self._embeddings @ self._encoder.embed([question]).numpy()[0]
        return found


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
