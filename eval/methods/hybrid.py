"""Passages found by words and by meaning: BM25 and a sentence encoder, with equal weights."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from hiermem.eval.methods.base import register_method
from hiermem.eval.methods.dense import Dense
from hiermem.eval.methods.passages import Index, WordIndex


class SummedIndex:
    """The sum of what several indexes of the same texts say, each as z-scores over all texts."""

    def __init__(self, *indexes: Index) -> None:
        self._indexes = indexes

    def scores(self, question: str) -> NDArray[np.floating]:
        """How well each text fits, ``[n]`` float64."""
        total: NDArray[np.floating] = np.sum([z_scores(index.scores(question)) for index in self._indexes], 0)
        return total


def z_scores(scores: NDArray[np.floating]) -> NDArray[np.floating]:
    """Scores with mean 0 and deviation 1 along the last dimension, float64; 0 where they do not differ."""
    exact = scores.astype(np.float64)
    centred, deviation = exact - exact.mean(-1, keepdims=True), exact.std(-1, keepdims=True)
    return np.divide(centred, deviation, out=np.zeros_like(exact), where=deviation > 0)


@register_method
class Hybrid(Dense):
    """Passages found by the sum of the z-scores of BM25 and of the cosines."""

    name: ClassVar[str] = "hybrid"

    def index(self, texts: Sequence[str]) -> Index:
        return SummedIndex(WordIndex(texts), super().index(texts))
