"""HMT's recurrence: memory embeddings, memory prompt and sensory tokens that the next segment reads.

Rows of a batch may be at different places of their segments.

Dimension names: B batch, m memory embeddings of a segment, n segments, k sensory tokens, Q new tokens,
P = m + k embeddings of a prefix, d backbone width.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hiermem.errors import InputError
from hiermem.memory.cache.frames import PositionFrames
from hiermem.memory.chunk import Chunk
from hiermem.memory.chunk_state import ChunkState, SavedRow
from hiermem.memory.hmt.module import HMTModule, SoftPrompt
from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorSpec


class Encoder(Protocol):
    """The backbone, as the recurrence needs it."""

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings ``[B, n, d]`` of token ids ``[B, n]``."""

    def summary(self, module: HMTModule, prompt: SoftPrompt, input_ids: Tensor, valid: list[int]) -> Tensor:
        """Summaries ``[B, m, d]`` of texts ``input_ids [B, n]``, of each row's first ``valid`` tokens."""


class SegmentRecurrence(ChunkState):
    """P_n ‖ sensory tokens ‖ segment ‖ P_n: the end of a segment leaves its memory embeddings (section 3.3).

    Args:
        module: the parameters.
        segment: tokens of a segment.

    Attributes:
        prefix: embeddings that are read before a segment.
        suffix: embeddings that are read after a segment; 0 where nobody wants what it leaves.
        summary_tokens: how many of a segment's own tokens are summarised to recall for it; 0: none.
        memory_embeddings: M, of each row's newest segments ``[n, m, d]``; None: none.
        segment_ids: token ids of each row's present segment, kept where `summary_tokens`.
        recent: each row's last k token ids ``[B, k]`` int64, -1 where there are none yet; None where k is 0.
        sensory: what they were where the present segment began.
        prompt: P_n of each row's present segment, ``[B, m, d]``; None before the first.
        prefix_mask: which columns before the present segment may be seen, ``[B, P]`` bool; None: all.
    """

    batched: ClassVar = {
        "recent": "recurrence.recent",
        "sensory": "recurrence.sensory",
        "prompt": "recurrence.prompt",
        "prefix_mask": "prefix.there",
    }
    by_row: ClassVar = {"memory_embeddings": "recurrence.past", "segment_ids": None}

    def __init__(self, module: HMTModule, segment: int, batch: int, device: torch.device) -> None:
        config = module.config
        self.module, self.segment, self.device = module, segment, device
        self.prefix = module.num_tokens + config.sensory
        self.suffix = 0 if module.embedding_shape is None else module.num_tokens
        self.summary_tokens = segment // 2 if config.query == "half" and config.last else 0
        self.prompt: Tensor | None = None
        self.prefix_mask: Tensor | None = None
        self.take_rows(batch)

    def take_rows(self, batch: int) -> None:
        """Set the number of rows, of which nothing was read yet."""
        self.memory_embeddings: list[Tensor | None] = [None] * batch
        self.segment_ids = [torch.empty(0, dtype=torch.int64, device=self.device)] * batch
        k = self.module.config.sensory
        self.recent = torch.full((batch, k), -1, device=self.device) if k else None
        self.sensory = self.recent

    # ---- where segments begin and end

    def starts(self, num_tokens: int) -> bool:
        """Whether a segment begins after so many tokens of a row."""
        return num_tokens % self.segment == 0

    def ends(self, num_tokens: int) -> bool:
        """Whether a segment ends with a row's token of this number."""
        return num_tokens % self.segment == 0

    def begins(self, num_tokens: Sequence[int], valid: Sequence[int]) -> bool:
        """Whether a segment begins in any row with the next ``valid`` tokens after ``num_tokens``."""
        return any(new > 0 and self.starts(count) for count, new in zip(num_tokens, valid, strict=True))

    def room(self, num_tokens: int) -> int:
        """Tokens that are left until a segment ends."""
        return self.segment - num_tokens % self.segment

    def falls_short(self, valid: Sequence[int]) -> bool:
        """Whether a segment that goes on was begun with fewer tokens than it recalls by.

        Args:
            valid: how many tokens are to come in each row.
        """
        rows = zip(self.segment_ids, self.memory_embeddings, valid, strict=True)
        return any(
            left is not None and bool(new) and 0 < len(begun) < self.summary_tokens
            for begun, left, new in rows
        )

    def check_begins(self, left: Sequence[int], take: int) -> None:
        """Refuse to begin a segment with fewer tokens than are summarised for it where more are at hand, as
        happens between rows that are at different places of their segments.

        Args:
            left: tokens that each row has left to read.
            take: how many of them are read at once.

        Raises:
            InputError: so it would be.
        """
        for past, begun, tokens in zip(self.memory_embeddings, self.segment_ids, left, strict=True):
            summarised = min(self.summary_tokens, len(begun) + tokens)
            if past is not None and len(begun) + min(take, tokens) < summarised:
                raise InputError(
                    "With the query half, rows that are read on by many tokens must be at the same place of "
                    "their segments: read them one by one."
                )

    def offsets(self, num_tokens: int) -> list[int]:
        """Places of the prefix, before the first token of a segment that begins after so many tokens."""
        m, k = self.module.num_tokens, self.module.config.sensory
        before = m + min(k, num_tokens)
        return [*range(-before, m - before), *range(-k, 0)]

    # ---- reading one chunk

    def surround(self, chunk: Chunk, frames: PositionFrames, encoder: Encoder) -> Chunk:
        """The chunk with what is read before and after the segments that begin or end in it.

        Args:
            frames: where the chunk's rows stand.
            encoder: the backbone.
        """
        rows = [
            (count, count + new, new > 0) for count, new in zip(chunk.num_tokens, chunk.valid, strict=True)
        ]
        starting = tuple(real and self.starts(before) for before, _, real in rows)
        ending = tuple(real and self.ends(after) for _, after, real in rows)
        prefix, suffix = self.prefix * any(starting), self.suffix * any(ending)
        if not (prefix or suffix):
            return replace(chunk, prefix_mask=self.prefix_mask)
        device, highest = chunk.ids.device, frames.trained_range - 1
        first = torch.tensor(frames.first(), device=device).unsqueeze(1)
        end = first + torch.tensor(chunk.valid, device=device).unsqueeze(1)
        offsets = [self.offsets(before)[:prefix] for before in chunk.num_tokens]
        # The prompt stands right before the segment; at a document's beginning there is no room for it.
        before = (first + torch.tensor(offsets, device=device, dtype=torch.int64)).clamp(0, highest)
        after = (end + torch.arange(suffix, device=device)).clamp(0, highest)
        chunk = replace(
            chunk,
            position_ids=torch.cat((before, chunk.position_ids, after), dim=1),
            prefix=prefix,
            suffix=suffix,
            starting=starting,
            ending=ending,
        )
        embeddings = self._embeddings(chunk, encoder)
        return replace(chunk, embeddings=embeddings, prefix_mask=self.prefix_mask)

    def _embeddings(self, chunk: Chunk, encoder: Encoder) -> Tensor:
        """The input embeddings of a chunk, ``[B, prefix + Q + suffix, d]``."""
        summary = None
        if chunk.prefix and (half := self.summary_tokens):
            first = [min(count, half) for count in chunk.valid]
            summary = encoder.summary(self.module, self.module.summary_prompt, chunk.ids[:, :half], first)
        columns = [encoder.embed(chunk.ids)]
        if chunk.prefix:
            columns.insert(0, self.prefix_embeddings(chunk.starting, encoder, summary))
        if chunk.suffix:
            columns.append(self.suffix_embeddings())
        dtype = columns[bool(chunk.prefix)].dtype
        return torch.cat([part.to(dtype) for part in columns], dim=1)  # prompts are float32

    def prefix_embeddings(self, starting: Sequence[bool], encoder: Encoder, summary: Tensor | None) -> Tensor:
        """Embeddings before the segments of the ``starting`` rows, ``[B, P, d]``; those of other rows do not
        matter.

        Args:
            summary: S_n of those rows, ``[B, m, d]``, where `summary_tokens`.
        """
        begins = torch.tensor(starting, device=self.device).unsqueeze(1)
        if self.recent is None or self.sensory is None:
            ids = torch.empty(len(starting), 0, dtype=torch.int64, device=self.device)
        else:
            self.sensory = torch.where(begins, self.recent, self.sensory)
            ids = self.sensory
        sensory = encoder.embed(ids.clamp(min=0))
        new = self._recalled(summary, sensory)
        self.prompt = new if self.prompt is None else torch.where(begins.unsqueeze(2), new, self.prompt)
        if self.sensory is None:
            return self.prompt
        # Before token k a document has fewer than k sensory tokens, -1 in their place.
        mask = torch.cat((torch.ones_like(new[..., 0], dtype=torch.bool), ids >= 0), dim=1)
        self.prefix_mask = mask if self.prefix_mask is None else torch.where(begins, mask, self.prefix_mask)
        return torch.cat((self.prompt, sensory), dim=1)

    def _recalled(self, summary: Tensor | None, like: Tensor) -> Tensor:
        """P_n from what all rows' segments left, on the device of ``like``; P_0 where nothing is recalled."""
        if not self.module.config.last:
            return self.module.first_prompt(len(self.memory_embeddings))
        empty = like.new_zeros(0, like.shape[-1])
        rows = [
            empty if left is None else torch.cat((empty, left.flatten(0, 1)))
            for left in self.memory_embeddings
        ]
        past = pad_sequence(rows, batch_first=True)  # M
        counts = torch.tensor([len(row) for row in rows], device=like.device).unsqueeze(1)
        real = torch.arange(past.shape[1], device=like.device) < counts
        if summary is None:  # S_n is what the segment before has left
            none = like.new_zeros(self.suffix, like.shape[-1])
            summary = torch.stack([none if left is None else left[-1] for left in self.memory_embeddings])
        prompt: Tensor = self.module(summary, past, real)
        return prompt

    def suffix_embeddings(self) -> Tensor:
        """Embeddings that end the segments, ``[B, m, d]``."""
        assert self.prompt is not None
        return self.prompt

    def commit(self, chunk: Chunk, hidden: Tensor | None) -> None:
        self.observe_tokens(chunk.ids, chunk.valid)
        if chunk.suffix:
            assert hidden is not None
            self.store_embeddings(hidden[:, -chunk.suffix :], chunk.ending)

    def observe_tokens(self, ids: Tensor, valid: Sequence[int]) -> None:
        """Take note of new tokens ``ids [B, Q] int64``, of which each row's first ``valid`` are real."""
        if self.recent is not None:
            k = self.recent.shape[1]
            # Of k old and Q new columns, the last k real ones begin at column `valid`.
            columns = torch.tensor(valid, device=ids.device).unsqueeze(1) + torch.arange(k, device=ids.device)
            self.recent = torch.cat((self.recent, ids), dim=1).gather(1, columns)
        if self.summary_tokens:
            rows = zip(self.segment_ids, ids, valid, strict=True)
            longer = [torch.cat((begun, new[:count])) for begun, new, count in rows]
            self.segment_ids = [begun if len(begun) < self.segment else begun[:0] for begun in longer]

    def store_embeddings(self, states: Tensor, ending: Sequence[bool]) -> None:
        """Take the final states ``[B, m, d]`` at the end of the segments of the ``ending`` rows."""
        last = max(self.module.config.last, 1)  # also without recall the newest: records take it
        for row, (left, new) in enumerate(zip(self.memory_embeddings, states.unsqueeze(1), strict=True)):
            if ending[row]:
                self.memory_embeddings[row] = new if left is None else torch.cat((left, new))[-last:]

    # ---- whole-memory operations

    def forget(self) -> None:
        """Leave nothing to be recalled."""
        self.memory_embeddings = [None] * len(self.memory_embeddings)

    def resume(self, segment_ids: Sequence[Tensor]) -> None:
        """Go on with segments of which these token ids were read, ``[n]`` int64 a row; they are in no saved
        tensors."""
        self.segment_ids = list(segment_ids) if self.summary_tokens else self.segment_ids

    def rewind(self) -> None:
        """Go back to where the present segments began."""
        if self.recent is not None and self.sensory is not None:
            began = torch.tensor([len(begun) > 0 for begun in self.segment_ids], device=self.device)
            self.recent = torch.where(began.unsqueeze(1), self.sensory, self.recent)
        self.segment_ids = [begun[:0] for begun in self.segment_ids]

    def specs(self, stored: Stored, row: SavedRow) -> dict[str, Any]:
        m, d = self.module.summary_prompt.weight.shape
        k, kinds = self.module.config.sensory, (row.dtype, torch.float32)
        ended = min(row.num_tokens // self.segment, max(self.module.config.last, 1))
        specs: dict[str, Any] = {}
        if ended and self.suffix:
            specs["memory_embeddings"] = [TensorSpec(kinds, (ended, m, d))]
        if k:
            ids = TensorSpec(torch.int64, (1, k), (-1, row.vocabulary - 1, "a sensory token"))
            specs |= {"recent": ids, "sensory": ids}
        if row.num_tokens:
            specs["prompt"] = TensorSpec(kinds, (1, m, d))
        if row.num_tokens and k:
            specs["prefix_mask"] = TensorSpec(torch.bool, (1, self.prefix))
        return specs


def again(begun: Sequence[Tensor], ids: Tensor, valid: Sequence[int]) -> tuple[Tensor, list[int], Tensor]:
    """The tokens of begun segments with new ones behind them: ids ``[B, N]``, how many are real in each row,
    and which columns the new ones are, ``[B, Q]``; those of padding do not matter.

    Args:
        begun: each row's, ``[n]`` int64.
        ids: new ones, ``[B, Q]`` int64, of which each row's first ``valid`` are real.
    """
    rows = [torch.cat((old, new[:n])) for old, new, n in zip(begun, ids, valid, strict=True)]
    longer, first = pad_sequence(rows, batch_first=True), torch.tensor([len(old) for old in begun])
    columns = first.unsqueeze(1) + torch.arange(ids.shape[1])
    return longer, [len(row) for row in rows], columns.clamp(max=longer.shape[1] - 1)


class TextSummary(SegmentRecurrence):
    """T ‖ text ‖ T: a whole text, read at once, leaves its summary S (section 3.1).

    With P_0 in T's place it leaves the memory embeddings of a document's first segment.
    """

    def __init__(self, module: HMTModule, prompt: SoftPrompt, batch: int, device: torch.device) -> None:
        super().__init__(module, 1, batch, device)
        self.prefix = self.suffix = module.num_tokens
        self.summary_tokens = 0
        self.prompt = prompt(batch)

    def starts(self, num_tokens: int) -> bool:
        return num_tokens == 0

    def room(self, num_tokens: int) -> int:
        return sys.maxsize

    def prefix_embeddings(self, starting: Sequence[bool], encoder: Encoder, summary: Tensor | None) -> Tensor:
        return self.suffix_embeddings()
