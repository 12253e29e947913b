"""Greedy decoding over a working memory: one row with drafts, or several in step.

Dimension names: B batch, N tokens of an input, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hiermem.drafts import LENGTH, PromptLookup
from hiermem.errors import NonFiniteError
from hiermem.memory.working import WorkingMemory
from hiermem.padding import Block

AGAIN = LENGTH
"""Most tokens that are read a second time beside a draft."""

FAILURES = 4
"""After so many drafts in a row of which nothing held, fifteen passes go without."""


class TokenTaker(Protocol):
    """A row of a batch that is given the tokens that continue it."""

    @property
    def going(self) -> bool:
        """Whether it wants another token."""

    def add(self, token: int) -> None:
        """Take the next token."""


class Streaming(Protocol):
    """A reader of token ids, chunk by chunk (`hiermem.reader.Reader`)."""

    @property
    def chunk(self) -> int:
        """Most tokens that are read at once."""

    def stream(
        self,
        memory: WorkingMemory,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        logits: range | None = None,
    ) -> Iterator[Block]:
        """Read left-aligned texts chunk by chunk."""


class DraftedRow:
    """One row that takes the likeliest tokens, those of a draft several in a pass.

    A draft is read behind what is known, and the likeliest tokens say how far it holds. Where it does not
    hold to its end, the memory goes back to before the pass, whatever it is made of, and what held is read
    again beside the next draft.

    Args:
        reader: reads.
        memory: moves on.
        ids: ``[1, N]`` int64, what is to be continued.
        row: takes the tokens.
        read: how many of ``ids`` the memory has read.

    Attributes:
        unread: tokens that ``memory`` is yet to read, ``[1, n]``; the newest is always among them.
        passes: through the backbone so far.
    """

    def __init__(
        self, reader: Streaming, memory: WorkingMemory, ids: Tensor, row: TokenTaker, read: int = 0
    ) -> None:
        self._reader, self._memory, self._row, self.unread = reader, memory, row, ids[:, read:]
        self._lookup, self.passes = PromptLookup(ids[0].tolist()), 0
        self._failures = self._pause = 0

    def tokens(self) -> Iterator[None]:
        """Give the row tokens as long as it wants any; yields after every token.

        Whenever it is stopped, ``memory`` and `unread` together are what the row took.

        Raises:
            NonFiniteError: the logits hold NaN.
        """
        while self._row.going:
            draft = self._draft()
            before = (self._memory.copy(), self.unread) if draft else None
            found, taken = list[int](), 0
            try:
                found = self._verified(draft)
                for token in found:
                    self._row.add(token)
                    taken += 1
                    yield
                    if not self._row.going:
                        break
            finally:
                self._lookup.extend(found[:taken])
                if before is not None and taken <= len(draft):  # it did not hold, or not all of it was wanted
                    self._go_back(*before, found[:taken])
                elif found:
                    self.unread = self.unread.new_tensor([found[-1:]])

    def settle(self) -> None:
        """Let the memory have read all that the row took but the last token, as without drafts."""
        if self.unread.shape[1] > 1:
            for _ in self._reader.stream(self._memory, self.unread[:, :-1]):
                pass
            self.unread = self.unread[:, -1:]

    def _verified(self, draft: list[int]) -> list[int]:
        """The likeliest next tokens: those of a draft as far as it holds, and one more."""
        ids = self.unread
        if draft:
            ids = torch.cat((ids, ids.new_tensor([draft])), dim=1)
        self.passes += 1
        logits = last_logits(self._reader, self._memory, ids, len(draft) + 1)
        found: list[int] = logits.argmax(dim=-1)[0].tolist()
        held = next((at for at, token in enumerate(draft) if token != found[at]), len(draft))
        check_finite(logits[:, : held + 1])
        if draft:  # where nothing is copied, drafts become rare
            self._failures = 0 if held else min(self._failures + 1, FAILURES)
            self._pause = 2**self._failures - 1
        return found[: held + 1]

    def _go_back(self, memory: WorkingMemory, unread: Tensor, taken: list[int]) -> None:
        """Take back a pass: its memory was this one before, and what held of it is read again."""
        self._memory.go_back_to(memory)
        self.unread = torch.cat((unread, unread.new_tensor([taken])), dim=1)

    def _draft(self) -> list[int]:
        """A draft that goes with the unread tokens into one chunk, at whose end nothing is decided."""
        unread = self.unread.shape[1]
        if self._pause or unread > AGAIN:
            self._pause = max(self._pause - 1, 0)
            return []
        room = min(self._memory.room([True]) - 1, self._memory.positions_left, self._reader.chunk)
        return self._lookup.draft(min(LENGTH, room - unread))


def in_step(
    reader: Streaming,
    memory: WorkingMemory,
    ids: Tensor,
    rows: Sequence[TokenTaker],
    lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Give each row the likeliest tokens after ``ids [B, N]``, one by one; see `Reader.greedy`."""
    if lengths is not None and min(lengths) < ids.shape[1]:
        ids = _read_to_last(reader, memory, ids, lengths)
    rows = list(rows)
    while going := [at for at, row in enumerate(rows) if row.going]:
        if len(going) < len(rows):
            index = torch.tensor(going, device=ids.device)
            memory.select_rows(index)
            ids, rows = ids[index], [rows[at] for at in going]
        logits = last_logits(reader, memory, ids, 1)
        check_finite(logits)
        ids = logits.argmax(dim=-1)
        for row, token in zip(rows, ids[:, 0].tolist(), strict=True):
            row.add(token)
        yield


def last_logits(reader: Streaming, memory: WorkingMemory, ids: Tensor, count: int) -> Tensor:
    """Logits after each of the last ``count`` of ``ids [B, N]``, ``[B, count, V]``; ``memory`` moves on."""
    N = ids.shape[1]
    blocks = [block for _, block in reader.stream(memory, ids, logits=range(N - count, N))]
    return torch.cat(blocks, dim=1)


def check_finite(logits: Tensor) -> None:
    """Refuse logits that tokens cannot be chosen by.

    Raises:
        NonFiniteError: there are NaN among them.
    """
    if logits.isnan().any():
        raise NonFiniteError("The backbone's logits are not finite: compute in float32, or read anew.")


def _read_to_last(reader: Streaming, memory: WorkingMemory, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """Read rows of unlike lengths but for the last token of each; these are returned, ``[B, 1]``.

    So logits are computed in one column, not in all where some row ends.
    """
    for _ in reader.stream(memory, ids[:, :-1], lengths=[length - 1 for length in lengths]):
        pass
    return ids.gather(1, torch.tensor(lengths, device=ids.device).unsqueeze(1) - 1)
