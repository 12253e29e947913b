"""Dense search key: embeddings of a sentence encoder, one for each sentence or row of a segment.

One embedding of a whole segment says little of its parts; its best sentence finds it. A sentence is encoded
within its paragraph, which says what "he" and "the village" are (late chunking, arXiv 2409.04701), where the
encoder can do that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from torch import Tensor

from hiermem.errors import InputError
from hiermem.retrieval.encoder import MINILM, MINILM_DIGEST, SentenceEncoder, check_encoder, sentence_encoder
from hiermem.retrieval.keys.base import Keyed, Question, SearchKey, UnitText


@dataclass
class DenseKey(SearchKey):
    """Key of meaning, of length 1.

    Attributes:
        encoder: `MINILM`, or a folder or hub id of a sentence-transformers model.
        weight: chosen on validation questions beside a lexical key of weight 1.
    """

    encoder: str = MINILM
    weight: float = 320.0

    name: ClassVar[str] = "dense"
    of_units: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.encoder:
            raise InputError(f"The encoder of the search key dense is missing: give {MINILM}, or a folder.")

    def check_available(self) -> None:
        check_encoder(self.encoder)

    @property
    def _model(self) -> SentenceEncoder:
        return sentence_encoder(self.encoder, "cpu")  # whatever the backbone computes on: keys are all alike

    @property
    def width(self) -> int:
        return self._model.width

    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        return self._model.embed([record.text for record in records])

    def unit_keys(self, units: Sequence[UnitText]) -> Tensor:
        if not self._model.takes_parts:
            return self.document_keys(units)
        paragraphs = groupby(units, lambda unit: unit.paragraph)
        return self._model.embed_parts([[unit.text for unit in members] for _, members in paragraphs])

    def query_key(self, question: Question) -> Tensor:
        return self._model.embed([question.meaning or question.text])[0]

    def trust(self, question: Question) -> float:
        """Of `MINILM`, which knows English: the cube of the share of words that it knows."""
        if self.encoder != MINILM:
            return 1.0
        return self._model.known_words(question.meaning or question.text) ** 3

    def codes(self, question: Question) -> frozenset[str]:
        return self._model.codes(question.meaning or question.text) if self.encoder == MINILM else frozenset()

    @property
    def odds(self) -> tuple[float, float] | None:
        """Of `MINILM`, from questions of Natural Questions (validation) that a document does and does not
        answer."""
        return (15.5, 0.485) if self.encoder == MINILM else None

    @classmethod
    def names_files_with(cls, settings: Mapping[str, Any]) -> bool:
        return settings.get("encoder", MINILM) != MINILM

    @property
    def digest(self) -> str:
        return MINILM_DIGEST if self.encoder == MINILM else self._model.digest
