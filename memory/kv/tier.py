"""Tier of keys and values: of each segment, those of its own tokens as they were read in their context.

They are taken at the moment of each decision, before it evicts, and when a segment is complete: all tokens
since the last moment are still cached then. Of these each head keeps the share `KVTier.keep` that the
eviction policy scores highest at that moment; of equal scores, the newer. So `full_cache`, which scores all
alike, `window` and `segment_local` keep the newest. Keys are kept without rotation: positions are given when
they are recalled (`hiermem.memory.kv.recall`). What a policy protects, sinks and recent tokens, is scored as
all else; but the sinks of the document stand by themselves, all of them and not quantised, and are no tokens
of their segment. Prompts of memory embeddings are no tokens of any.

Settings are kept in the memory's manifest; complete groups of segments are a `Part` each.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.cache.kv_cache import KVCache
from hiermem.memory.kv.quantise import EXACT, FORMATS, bytes_of
from hiermem.memory.kv.store import (
    LONGEST,
    Bank,
    Newest,
    SegmentTokens,
    banks_of,
    joined,
    read_segment,
)
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.memory.stored import Stored, in_range
from hiermem.memory.tensor_state import named
from hiermem.memory.tier import Tier
from hiermem.retrieval.keys import Question
from hiermem.retrieval.parts import Part

GROUP = 64
"""Segments in a file of the series."""


@dataclass
class KVTier(Tier):
    """Keys and values of all complete segments.

    It finds nothing by itself: segments are found by their search keys.

    Attributes:
        keep: share of a segment's tokens that each KV head keeps, above 0; 1 keeps all.
        dtype: one of `FORMATS`: `int8` and `int4` with one scale for each token and head, or floats.
    """

    keep: float = 0.25
    dtype: str = "int8"

    name: ClassVar[str] = "kv"
    wants_cached: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.keep <= 1.0:
            raise InputError(f"The tier kv keeps a share above 0 and up to 1, not {self.keep}.")
        if self.dtype not in FORMATS:
            raise InputError(f"The tier kv has no dtype {self.dtype!r}: choose one of {', '.join(FORMATS)}.")
        self._banks: tuple[Bank, ...] = ()
        self._segment = LONGEST
        self._begin = self._seen = 0
        self._sinks: SegmentTokens | None = None
        self._pending: SegmentTokens | None = None
        self._open: tuple[SegmentTokens, ...] = ()
        self._series: tuple[Part, ...] = ()

    def __len__(self) -> int:
        """How many segments it has."""
        return GROUP * len(self._series) + len(self._open)

    @property
    def banks(self) -> tuple[Bank, ...]:
        """The heads that it keeps tokens of."""
        return self._banks

    @property
    def segment(self) -> int:
        """Tokens of a segment."""
        return self._segment

    @property
    def sinks(self) -> SegmentTokens | None:
        """The document's first tokens, exactly, in float32; None: there are no sinks."""
        return self._sinks

    def tokens_of(self, segment: int) -> SegmentTokens:
        """Tokens of a complete segment, but for sinks.

        Raises:
            InputError: there is no such segment.
        """
        if not 0 <= segment < len(self):
            raise InputError(f"The tier kv has no segment {segment}: give one of 0 to {len(self) - 1}.")
        group, place = divmod(segment, GROUP)
        if group == len(self._series):
            return self._open[place]
        return read_segment(Stored(self._series[group]).within(str(place)), self.dtype, self._segment)

    @property
    def bytes_per_token(self) -> float:
        """Bytes that it holds for each token that it has seen."""
        return self.nbytes / self._seen if self._seen else 0.0

    def expected_bytes(self, tokens: int, cache: KVCache) -> int:
        """About how many bytes it will hold of a document of so many tokens."""
        of_a_token = sum(
            len(bank.heads) * (2 + sum(bytes_of(width, self.dtype) for width in bank.widths))
            for bank in banks_of(cache)
        )
        return round(self.keep * tokens * of_a_token)

    # ---- reading

    def fit(self, cache: KVCache, undecided: range, segment: int) -> None:
        """As `Tier.fit`.

        Raises:
            InputError: positions of the backbone are learned, a segment is too long, or a width is odd where
                two numbers share a byte.
            ValueError: what it holds is of other heads, or not all else is in the cache.
        """
        if segment > LONGEST:
            raise InputError(f"The tier kv takes segments of up to {LONGEST} tokens, not of {segment}.")
        self._banks, self._segment = banks_of(cache), segment
        if self.dtype == "int4" and any(width % 2 for bank in self._banks for width in bank.widths):
            raise InputError("Heads of an odd width cannot be kept in int4: give the tier kv another dtype.")
        several = (self.tokens_of(number) for number in range(len(self)))
        for tokens in (*several, *([self._pending] if self._pending else [])):
            self._check_banks(tokens, self.dtype)
        if self._sinks is not None:
            self._check_banks(self._sinks, EXACT)
        sinks = 0 if self._sinks is None else self._sinks[0].places.shape[1]
        if sinks != min(cache.policy.sinks, self._seen):
            raise ValueError("there are not as many sinks as tokens of this kind")
        if not undecided.start <= self._seen <= undecided.stop:
            raise ValueError("the tier kv has seen another number of tokens than were read")
        expected = torch.arange(self._seen, undecided.stop, device=cache.device)
        for layer in cache.layers if len(expected) else ():
            newest = None if layer.positions is None else layer.positions[:, :, -len(expected) :]
            if newest is None or not torch.equal(newest, expected.expand_as(newest)):
                raise ValueError("the cache lacks tokens that the tier kv has not seen")

    def _check_banks(self, tokens: SegmentTokens, dtype: str) -> None:
        pairs = zip(tokens, self._banks, strict=False)
        if len(tokens) != len(self._banks) or not all(some.fits(bank, dtype) for some, bank in pairs):
            raise ValueError("keys and values are of other heads")

    def cached(self, cache: KVCache, num_tokens: int) -> None:
        if num_tokens == self._seen:
            return
        newest, first = Newest(cache, self._banks, num_tokens), self._seen
        own = min(max(cache.policy.sinks, first), num_tokens)
        if own > first:
            sinks = newest.pack(first, own, 0, 1.0, EXACT)
            self._sinks = sinks if self._sinks is None else joined((self._sinks, sinks))
        tokens = newest.pack(own, num_tokens, self._begin, self.keep, self.dtype)
        self._pending = tokens if self._pending is None else joined((self._pending, tokens))
        self._seen = num_tokens

    def write(self, records: Sequence[SegmentRecord]) -> None:
        for record in records:
            assert self._pending is not None
            self._open, self._pending = (*self._open, self._pending), None
            self._begin += len(record.ids)
            if len(self._open) == GROUP:
                self._series, self._open = (*self._series, Part(dict(named(self._open)))), ()

    def recall(self, question: Question, k: int) -> list[Hit]:
        return []

    def copy(self) -> "KVTier":
        return copy(self)

    # ---- saving

    def tensors(self) -> dict[str, Tensor]:
        tree = {"sinks": self._sinks, "pending": self._pending, "segments": self._open}
        return dict(named(tree)) | {"seen": torch.tensor([self._seen])}

    def series(self) -> tuple[Part, ...]:
        return self._series

    def load_series(self, parts: Sequence[Part]) -> None:
        for part in parts:
            stored = Stored(part)
            for place in range(GROUP):
                read_segment(stored.within(str(place)), self.dtype, LONGEST)
            stored.done()
        self._series = tuple(parts)

    def load(self, tensors: Mapping[str, Tensor], records: Sequence[SegmentRecord]) -> None:
        stored = Stored(tensors)
        seen = in_range(stored.take("seen", torch.int64, 1), 0, 1 << 48, "seen")
        self._seen, self._begin = int(seen), sum(len(record.ids) for record in records)
        grouped = GROUP * len(self._series)
        if not 0 <= len(records) - grouped < GROUP or self._seen < self._begin:
            raise ValueError("the tier kv is of another number of segments")
        segments = stored.within("segments")
        self._open = tuple(
            read_segment(segments.within(str(place)), self.dtype, len(record.ids))
            for place, record in enumerate(records[grouped:])
        )
        segments.done()
        pending, sinks = stored.within("pending"), stored.within("sinks")
        stored.done()
        if bool(pending) != (self._seen > self._begin):
            raise ValueError("the tier kv lacks tokens of the present segment, or has too many")
        self._pending = read_segment(pending, self.dtype, self._seen - self._begin) if pending else None
        self._sinks = read_segment(sinks, EXACT, LONGEST) if sinks else None
