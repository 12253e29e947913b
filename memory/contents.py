"""Content of a long-term memory on disk, taken apart and checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hiermem.memory.records import SegmentRecord
from hiermem.memory.state_encoder import TokenVectors
from hiermem.memory.stored import MOST, Stored, exactly, in_range

UNITS = "units"
"""File of the index of units, which a memory has where it has search keys of those."""
STATES = "states"
"""File of vectors of the partial segment's tokens, where a search key is made of the backbone's states."""
MOST_OF_A_KEY = 1e9
"""So large can no entry of a search key be, and products of two are still finite."""


@dataclass(frozen=True)
class Contents:
    """Content of a long-term memory that `LongTermMemory.tensors` gave, checked.

    Attributes:
        records: the last may be partial.
        ids: all their tokens, ``[T]`` int32.
        keys: of the complete records, ``[N, D]`` float32.
        statistics: of the lexical key.
        statistics_of_others: of other keys, as ``<key>.<name>``.
        units: what the index of units gave; nothing where there is none.
    """

    records: list[SegmentRecord]
    ids: Tensor
    keys: Tensor
    statistics: dict[str, Tensor]
    statistics_of_others: dict[str, Tensor]
    units: dict[str, Tensor]

    @classmethod
    def read(cls, files: Mapping[str, Mapping[str, Tensor]]) -> "Contents":
        """Take the tensors apart again.

        Raises:
            ValueError: something is missing, left over or does not fit the rest.
        """
        names = ("records", "keys", "embeddings")
        exactly(dict(files), names, "the long-term memory", optional=(UNITS, STATES))
        records, statistics = _read_records(files["records"]), dict(files["keys"])
        others = {name: statistics.pop(name) for name in list(statistics) if "." in name}
        keys = Stored({"keys": statistics.pop("keys", torch.zeros(0))}, "keys.").take(
            "keys", torch.float32, None, None
        )
        if len(records) - len(keys) not in (0, 1):
            raise ValueError("there are as many keys as records, but for a partial one")
        if keys.numel() and float(keys.abs().max()) > MOST_OF_A_KEY:
            raise ValueError("a search key leaves its range")
        _check_statistics(statistics, len(keys))
        embeddings = files["embeddings"].get("embeddings")
        if embeddings is not None:
            if len(files["embeddings"]) != 1 or not embeddings.ndim or len(embeddings) != len(keys):
                raise ValueError("there are as many embeddings as complete records")
            if not (embeddings.is_floating_point() and bool(embeddings.isfinite().all())):
                raise ValueError("the embeddings are not finite numbers")
            for record, embedding in zip(records, embeddings, strict=False):
                record.embedding = embedding
        elif files["embeddings"]:
            raise ValueError("there is no place for what stands among the embeddings")
        units = dict(files.get(UNITS, {}))
        if STATES in files:
            _read_vectors(files[STATES], records[len(keys) :])
        return cls(records, files["records"]["ids"], keys, statistics, others, units)

    def check_width(self, width: int) -> None:
        """Refuse vectors of the partial record's tokens that are of another width, or missing.

        Raises:
            ValueError: so it is.
        """
        for record in self.records[len(self.keys) :]:
            if record.token_vectors is None or record.token_vectors.vectors.shape[1] != width:
                raise ValueError("the vectors of the partial segment's tokens are of another width")

    def check(
        self, segment: int, tokens: int, characters: int, vocabulary: int | None = None, overlap: bool = False
    ) -> None:
        """Refuse records that are not those of a document, one after the other.

        Args:
            segment: tokens of a complete record.
            tokens: of the document.
            characters: of the document.
            vocabulary: how many tokens there are; None: any.
            overlap: whether characters may stand in two records, as the first release left them where a
                partial segment with memory embeddings was read on.

        Raises:
            ValueError: they are not.
        """
        in_range(self.ids, 0, MOST if vocabulary is None else vocabulary - 1, "a token")
        at = character = 0
        for number, record in enumerate(self.records):
            gap, count = record.start - character, len(record.ids)
            if record.first_token != at or gap > 0 or (gap and not overlap):
                raise ValueError(f"record {number} does not begin where the one before ends")
            complete = number < len(self.keys)
            if count != segment if complete else not 0 < count < segment:
                raise ValueError(f"record {number} has another number of tokens")
            at, character = at + count, record.end
        if (at, character) != (tokens, characters):
            raise ValueError("the records are of another document")


def _read_records(tensors: Mapping[str, Tensor]) -> list[SegmentRecord]:
    stored = Stored(tensors, "records.")
    spans = in_range(stored.take("spans", torch.int64, None, 5), 0, MOST, "a span").tolist()
    ids, text = stored.take("ids", torch.int32, None), bytes(stored.take("text", torch.uint8, None).numpy())
    stored.done()
    records, at_token, at_byte = [], 0, 0
    for first, count, start, end, size in spans:
        piece = text[at_byte : at_byte + size].decode("utf-8", "surrogatepass")
        if end - start != len(piece):
            raise ValueError("a record has another number of characters")
        records.append(SegmentRecord(first, ids[at_token : at_token + count], start, end, piece))
        at_token, at_byte = at_token + count, at_byte + size
    if (at_token, at_byte) != (len(ids), len(text)):
        raise ValueError("the records are of another length")
    return records


def _read_vectors(tensors: Mapping[str, Tensor], partial: Sequence[SegmentRecord]) -> None:
    """Give a partial record the vectors of its tokens; without one, there must be none."""
    count = sum(len(record.ids) for record in partial)
    stored = Stored(tensors, "states.")
    ends = stored.take("ends", torch.int64, count)
    vectors = stored.take("vectors", torch.float32, count, None)
    stored.done()
    if not bool(vectors.isfinite().all()):
        raise ValueError("the vectors of the partial segment's tokens are not finite numbers")
    for record in partial:
        ascending = bool((ends[1:] >= ends[:-1]).all())
        if not (ascending and record.start <= int(ends[0]) and int(ends[-1]) <= record.end):
            raise ValueError("the vectors of the partial segment's tokens are of another text")
        record.token_vectors = TokenVectors(ends, vectors)


def _check_statistics(tensors: Mapping[str, Tensor], segments: int) -> None:
    """Refuse statistics of a search key that are not of so many segments."""
    stored = Stored(tensors, "keys.")
    units = stored.take("unit_ids", torch.int64, None)
    stored.take("frequency", torch.int64, len(units))
    if int(stored.take("segments", torch.int64, 1)) != segments:
        raise ValueError("the statistics are of another number of segments")
    stored.done()
    if not bool((units[1:] > units[:-1]).all()):
        raise ValueError("the units are not in order")
