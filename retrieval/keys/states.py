"""Search key of states: embeddings of sentences that the backbone's own states give while it reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hiermem.retrieval.keys.base import Keyed, Question, SearchKey


class StateEmbeddings(Protocol):
    """Encoder that the embeddings come from."""

    @property
    def width(self) -> int: ...
    @property
    def digest(self) -> str: ...


@dataclass
class StatesKey(SearchKey):
    """Key of length 1; 0 for what the backbone has not read.

    Attributes:
        weight: chosen on validation questions beside a lexical key of weight 1.
    """

    weight: float = 240.0
    state_encoder: StateEmbeddings = field(kw_only=True)

    name: ClassVar[str] = "states"
    of_units: ClassVar[bool] = True
    of_states: ClassVar[bool] = True
    supplied: ClassVar[frozenset[str]] = frozenset({"state_encoder"})

    @property
    def width(self) -> int:
        return self.state_encoder.width

    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        keys = torch.zeros(len(records), self.width)
        for row, record in enumerate(records):
            if record.embedding is not None:
                keys[row] = record.embedding
        return keys

    def query_key(self, question: Question) -> Tensor:
        return torch.zeros(self.width) if question.embedding is None else question.embedding

    def trust(self, question: Question) -> float:
        """The cube of the share of words that the backbone's tokenizer knows whole."""
        return question.known**3

    @property
    def odds(self) -> tuple[float, float]:
        """Of the encoder that ships for `smollm2`, from questions of Natural Questions (validation) that a
        document does and does not answer: it tells few of them apart."""
        return (8.6, 0.571)

    @property
    def digest(self) -> str:
        return self.state_encoder.digest
