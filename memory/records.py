"""Records that segments leave in the long-term memory, and records that were recalled."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.state_encoder import TokenVectors


class SegmentRecord:
    """Record of a segment: its tokens, its text, its memory embeddings.

    Attributes:
        first_token: true position of its first token in the document.
        ids: its tokens, ``[n]`` int32.
        start: its first character in the document.
        end: the character after its last.
        utf8: the characters of that span, exactly, ``[bytes]`` uint8.
        embedding: its memory embeddings ``[m, width]``, where the model makes them.
        token_vectors: what embeddings of its units are made of, where a search key wants them and until the
            units have theirs.
    """

    def __init__(
        self, first_token: int, ids: Tensor, start: int, end: int, text: str, embedding: Tensor | None = None
    ) -> None:
        self.first_token, self.ids, self.start, self.end = first_token, ids, start, end
        utf8 = bytearray(text.encode("utf-8", "surrogatepass"))
        self.utf8 = torch.frombuffer(utf8, dtype=torch.uint8) if utf8 else torch.zeros(0, dtype=torch.uint8)
        self.embedding = embedding
        self.token_vectors: TokenVectors | None = None

    @property
    def text(self) -> str:
        """The characters of its span."""
        return bytes(self.utf8.numpy()).decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class RecordTexts:
    """Texts of one document's records, by their numbers."""

    records: Sequence[SegmentRecord]

    def segment_text(self, document: str, segment: int) -> str:
        """The text of a record; empty where there is none of that number."""
        return self.records[segment].text if 0 <= segment < len(self.records) else ""


@dataclass(frozen=True)
class UnitHit:
    """A sentence or row of a recalled record.

    Attributes:
        start: its first character in the document, which may be in the record before.
        end: the character after its last.
        score: how well its record would fit the question if it were the record's best.
        own: inner product of the question's key and its own, without weights: a cosine where keys are of
            length 1.
    """

    start: int
    end: int
    score: float
    own: float


@dataclass(frozen=True)
class Hit:
    """A recalled record.

    Attributes:
        segment: its index in its document.
        score: how well it fits the question, against others of the same tier; from the records, inner product
            of the question's key and the record's, and that of its best unit on top.
        units: of the record, in document order, where there are search keys of units; the best of them has
            the hit's own score.
        document: name of its document, where there are several; empty: there is one.
    """

    segment: int
    score: float
    record: SegmentRecord
    units: Sequence[UnitHit] = ()
    document: str = ""
