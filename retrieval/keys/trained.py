"""Trained search key: a projection of a segment's memory embeddings, found by one of a question's summary."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from hiermem.retrieval.keys.base import Keyed, Question, SearchKey


class SearchProjections(Protocol):
    """Projections of memory embeddings and summaries; the model that owns them names their hash itself."""

    @property
    def search_width(self) -> int: ...
    def search_keys(self, embeddings: Tensor) -> Tensor: ...
    def search_queries(self, summaries: Tensor) -> Tensor: ...


@dataclass
class TrainedKey(SearchKey):
    """Key of length 1 in ``projections.search_width`` numbers; 0 for a text without memory embeddings."""

    projections: SearchProjections = field(kw_only=True)

    name: ClassVar[str] = "trained"
    supplied: ClassVar[frozenset[str]] = frozenset({"projections"})

    @property
    def width(self) -> int:
        return self.projections.search_width

    @torch.no_grad()
    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        keys = torch.zeros(len(records), self.width)
        places = [at for at, record in enumerate(records) if record.embedding is not None]
        if places:
            embeddings = [e for record in records if (e := record.embedding) is not None]
            keys[places] = self.projections.search_keys(torch.stack(embeddings)).cpu()
        return keys

    @torch.no_grad()
    def query_key(self, question: Question) -> Tensor:
        if question.summary is None:
            return torch.zeros(self.width)
        return self.projections.search_queries(question.summary.unsqueeze(0)).cpu()[0]
