"""What is read around the segments of a document: lead and tail of a chunk, and the prefix they leave.

Dimension names: B batch, Q new tokens, P tokens of a prefix, d backbone width, D head width.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.memory.chunk import Chunk, Prefix
from hiermem.memory.hmt.segments import Embed, SegmentRecurrence
from hiermem.memory.stored import Stored


class Surroundings:
    """Puts what a recurrence hands on around the segments that begin or end in a chunk.

    Tensors are replaced, never written in place.

    Args:
        parts: how many parts the working memory has.

    Attributes:
        prefixes: what was read before the present segment, one for each part; empty where nothing was.
        there: which tokens of the prefixes may be seen, ``[B, P]`` bool; None: all.
    """

    def __init__(self, recurrence: SegmentRecurrence, parts: int) -> None:
        self.recurrence = recurrence
        self.prefixes: list[Prefix] = []
        self.there: Tensor | None = None
        self._parts = parts
        self._pending: dict[int, Prefix] = {}

    # ---- reading one chunk

    def around(self, chunk: Chunk, first: Tensor, highest: int) -> Chunk:
        """The chunk with what is read before and after the segments that begin or end in it.

        Args:
            first: frame of each row's next token, ``[B, 1]``.
            highest: the last frame position that the backbone was trained on.
        """
        recurrence = self.recurrence
        rows = [(before, before + new, new > 0) for before, new in zip(chunk.seen, chunk.valid, strict=True)]
        starting = tuple(real and recurrence.starts(before) for before, _, real in rows)
        ending = tuple(real and recurrence.ends(after) for _, after, real in rows)
        lead, tail = recurrence.lead * any(starting), recurrence.tail * any(ending)
        if not (lead or tail):
            return chunk
        device = first.device
        end = first + torch.tensor(chunk.valid, device=device).unsqueeze(1)
        offsets = [recurrence.offsets(before)[:lead] for before in chunk.seen]
        before = (first + torch.tensor(offsets, device=device, dtype=torch.int64)).clamp(0, highest)
        after = (end + torch.arange(tail, device=device)).clamp(0, highest)
        frames = torch.cat((before, chunk.frames, after), dim=1)
        return replace(chunk, frames=frames, lead=lead, tail=tail, starting=starting, ending=ending)

    def embeddings(self, chunk: Chunk, tokens: Tensor, embed: Embed, summary: Tensor | None = None) -> Tensor:
        """The input embeddings of a chunk, ``[B, lead + Q + tail, d]``.

        Args:
            tokens: those of its tokens, ``[B, Q, d]``.
            embed: the backbone's token embeddings.
            summary: what `SegmentRecurrence.before` wants.
        """
        parts = [tokens]
        if chunk.lead:
            before, there = self.recurrence.before(chunk.starting, embed, summary)
            if there is not None and self.there is not None:
                begins = torch.tensor(chunk.starting, device=there.device).unsqueeze(1)
                there = torch.where(begins, there, self.there)
            self.there = there
            parts.insert(0, before)
        if chunk.tail:
            parts.append(self.recurrence.after())
        return torch.cat([part.to(tokens.dtype) for part in parts], dim=1)  # prompts are float32

    def prefix(self, part: int, chunk: Chunk, keys: Tensor, values: Tensor) -> Prefix | None:
        """What stands before each row's present segment: new where one begins, else what was there.

        Args:
            keys, values: of the chunk's lead, ``[B, G, lead, D]``.
        """
        if not chunk.lead:
            return self.prefixes[part] if self.prefixes else None
        new = Prefix(keys, values)
        if self.prefixes and not all(chunk.starting):
            begins = torch.tensor(chunk.starting, device=keys.device).view(-1, 1, 1, 1)
            old = self.prefixes[part]
            new = Prefix(torch.where(begins, keys, old.keys), torch.where(begins, values, old.values))
        self._pending[part] = new
        return new

    def length(self, chunk: Chunk) -> int:
        """Keys that stand before the cached ones in a chunk."""
        return chunk.lead or (self.prefixes[0].keys.shape[2] if self.prefixes else 0)

    def hand_on(self, chunk: Chunk, ids: Tensor, states: Tensor | None) -> None:
        """Take what the chunk leaves to the next segments.

        Args:
            ids: the chunk's tokens, ``[B, Q]``.
            states: final states after the segments that end, ``[B, tail, d]``.
        """
        self.recurrence.saw(ids, chunk.valid)
        if states is not None:
            self.recurrence.keep(states, chunk.ending)

    def commit(self) -> None:
        """Take the prefixes of the present chunk in, where it has new ones."""
        if self._pending:
            self.prefixes = [self._pending[part] for part in range(self._parts)]

    def forget_chunk(self) -> None:
        """Drop what belongs to the present chunk alone."""
        self._pending = {}

    # ---- whole-memory operations

    def copy(self) -> "Surroundings":
        """Independent ones with the same content."""
        twin = copy(self)
        twin.recurrence, twin._pending = self.recurrence.copy(), {}
        return twin

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        self.prefixes = [Prefix(prefix.keys.detach(), prefix.values.detach()) for prefix in self.prefixes]
        self.recurrence.detach()

    def rewind(self) -> None:
        """Go back to where the present segments began."""
        self.prefixes = []
        self.recurrence.rewind()

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes old row ``index[i]`` (int64)."""
        self.prefixes = [prefix.rows(index) for prefix in self.prefixes]
        if self.there is not None:
            self.there = self.there[index.to(self.there.device)]
        self.recurrence.select_rows(index)

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, named ``prefix.<…>`` and ``recurrence.<…>``."""
        named = {f"recurrence.{name}": tensor for name, tensor in self.recurrence.tensors().items()}
        for part, prefix in enumerate(self.prefixes):
            named |= {f"prefix.keys.{part}": prefix.keys, f"prefix.values.{part}": prefix.values}
        return named | ({} if self.there is None else {"prefix.there": self.there})

    def load(
        self,
        stored: Stored,
        seen: int,
        dtype: torch.dtype,
        vocabulary: int,
        shapes: Sequence[tuple[int, tuple[int, int]]],
    ) -> None:
        """The inverse of `tensors`, of one row after ``seen`` tokens.

        Args:
            dtype, vocabulary: as in `SegmentRecurrence.load`.
            shapes: of each part, its heads and the widths of their keys and values; 0: any.

        Raises:
            ValueError: something is missing or of another kind.
        """
        prefix, lead = stored.within("prefix"), self.recurrence.lead
        if seen:
            self.prefixes = [
                Prefix(
                    *(
                        prefix.take(f"{name}.{part}", dtype, 1, heads, lead, width or None)
                        for name, width in zip(("keys", "values"), widths, strict=True)
                    )
                )
                for part, (heads, widths) in enumerate(shapes)
            ]
            sensory = self.recurrence.recent.shape[1]
            self.there = prefix.take("there", torch.bool, 1, lead) if sensory else None
        prefix.done()
        self.recurrence.load(stored.within("recurrence"), seen, dtype, vocabulary)
