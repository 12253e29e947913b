"""What is handed from segment to segment beside the cache: memory embeddings, prompts, sensory tokens (HMT).

Rows of a batch may be at different places of their segments.

Dimension names: B batch, m memory embeddings of a segment, k sensory tokens, Q new tokens, d backbone width.
"""

import sys
from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hiermem.errors import InputError
from hiermem.memory.hmt.module import HMTModule, SoftPrompt
from hiermem.memory.stored import Stored, in_range

Embed = Callable[[Tensor], Tensor]
"""From token ids ``[B, n]`` to the backbone's input embeddings ``[B, n, d]``."""


class SegmentRecurrence:
    """P_n ‖ sensory tokens ‖ segment ‖ P_n: the end of a segment leaves its memory embeddings (section 3.3).

    Tensors are replaced, never written in place.

    Args:
        module: the parameters.
        segment: tokens of a segment.

    Attributes:
        lead: embeddings that are read before a segment.
        tail: embeddings that are read after a segment.
        looks_ahead: how many of a segment's own tokens are summarised to recall for it; 0: none.
        past: memory embeddings ``[m, d]`` of each row's segments, the newest `SummaryConfig.last`.
        begun: token ids of each row's present segment, kept where `looks_ahead`.
        recent: each row's last k token ids ``[B, k]`` int64, -1 where there are none yet.
        sensory: what they were where the present segment began.
        prompt: P_n of each row's present segment, ``[B, m, d]``; None before the first.
    """

    def __init__(self, module: HMTModule, segment: int, batch: int, device: torch.device) -> None:
        config = module.config
        self.module, self.segment = module, segment
        self.lead, self.tail = config.tokens + config.sensory, config.tokens
        self.looks_ahead = segment // 2 if config.query == "half" else 0
        self.past: list[list[Tensor]] = [[] for _ in range(batch)]
        self.begun = [torch.empty(0, dtype=torch.int64, device=device)] * batch
        self.recent = self.sensory = torch.full((batch, config.sensory), -1, device=device)
        self.prompt: Tensor | None = None

    def starts(self, seen: int) -> bool:
        """Whether a segment begins after ``seen`` tokens of a row."""
        return seen % self.segment == 0

    def ends(self, seen: int) -> bool:
        """Whether a segment ends with the row's token number ``seen``."""
        return seen % self.segment == 0

    def room(self, seen: int) -> int:
        """How many tokens are left until a segment ends."""
        return self.segment - seen % self.segment

    def falls_short(self, valid: Sequence[int]) -> bool:
        """Whether a segment that goes on was begun with fewer tokens than it recalls by.

        Args:
            valid: how many tokens are to come in each row.
        """
        rows = zip(self.begun, self.past, valid, strict=True)
        return any(past and new and 0 < len(begun) < self.looks_ahead for begun, past, new in rows)

    def check_begins(self, left: Sequence[int], take: int) -> None:
        """Refuse to begin a segment with fewer tokens than are summarised for it where more are at hand, as
        happens between rows that are at different places of their segments.

        Args:
            left: tokens that each row has left to read.
            take: how many of them are read at once.

        Raises:
            InputError: so it would be.
        """
        for past, begun, tokens in zip(self.past, self.begun, left, strict=True):
            wanted = min(self.looks_ahead, len(begun) + tokens)
            if past and len(begun) + min(take, tokens) < wanted:
                raise InputError(
                    "With the query half, rows that are read on by many tokens must be at the same place of "
                    "their segments: read them one by one."
                )

    def offsets(self, seen: int) -> list[int]:
        """How far before the first token of a segment that begins after ``seen`` tokens its lead stands."""
        k = self.recent.shape[1]
        before = self.tail + min(k, seen)
        return [*range(-before, self.tail - before), *range(-k, 0)]

    def before(
        self, starting: Sequence[bool], embed: Embed, summary: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings before the segments of the ``starting`` rows, and which of them may be seen.

        Args:
            summary: S_n of those rows, ``[B, m, d]``, where `looks_ahead`.

        Returns:
            ``[B, lead, d]`` and ``[B, lead]`` bool, None where all; the other rows' values do not matter.
        """
        begins = torch.tensor(starting, device=self.recent.device).unsqueeze(1)
        self.sensory = torch.where(begins, self.recent, self.sensory)
        sensory = embed(self.sensory.clamp(min=0))
        new = self._recalled(summary, sensory)
        self.prompt = new if self.prompt is None else torch.where(begins.unsqueeze(2), new, self.prompt)
        if not self.sensory.shape[1]:
            return self.prompt, None
        there = torch.cat((torch.ones_like(new[..., 0], dtype=torch.bool), self.sensory >= 0), dim=1)
        return torch.cat((self.prompt, sensory), dim=1), there

    def _recalled(self, summary: Tensor | None, like: Tensor) -> Tensor:
        """P_n from all rows' pasts, on the device of ``like``."""
        empty = like.new_zeros(0, like.shape[-1])
        rows = [torch.cat([empty, *embeddings]) for embeddings in self.past]
        past = pad_sequence(rows, batch_first=True)
        counts = torch.tensor([len(row) for row in rows], device=like.device).unsqueeze(1)
        there = torch.arange(past.shape[1], device=like.device) < counts
        if summary is None:
            none = like.new_zeros(self.tail, like.shape[-1])
            summary = torch.stack([embeddings[-1] if embeddings else none for embeddings in self.past])
        return self.module(summary, past, there)

    def after(self) -> Tensor:
        """Embeddings that end the segments, ``[B, tail, d]``."""
        assert self.prompt is not None
        return self.prompt

    def saw(self, ids: Tensor, valid: Sequence[int]) -> None:
        """Take note of new tokens ``ids [B, Q] int64``, of which each row's first ``valid`` are real."""
        k = self.recent.shape[1]
        if k:
            columns = torch.tensor(valid, device=ids.device).unsqueeze(1) + torch.arange(k, device=ids.device)
            self.recent = torch.cat((self.recent, ids), dim=1).gather(1, columns)
        if self.looks_ahead:
            rows = zip(self.begun, ids, valid, strict=True)
            extend_state = [torch.cat((own, new[:count])) for own, new, count in rows]
            self.begun = [own if len(own) < self.segment else own[:0] for own in extend_state]

    def keep(self, states: Tensor, ending: Sequence[bool]) -> None:
        """Take the final states ``[B, tail, d]`` at the end of the segments of the ``ending`` rows."""
        last = self.module.config.last
        self.past = [
            [*embeddings, own][-last:] if ends else embeddings
            for embeddings, own, ends in zip(self.past, states, ending, strict=True)
        ]

    # ---- whole-memory operations

    def copy(self) -> "SegmentRecurrence":
        """An independent one with the same content."""
        twin = copy(self)
        twin.past, twin.begun = list(self.past), list(self.begun)
        return twin

    def detach(self) -> None:
        """Cut the gradients: what was handed on so far is a constant from here."""
        self.past = [[embedding.detach() for embedding in embeddings] for embeddings in self.past]
        self.prompt = None if self.prompt is None else self.prompt.detach()

    def go_on(self, begun: Sequence[Tensor]) -> None:
        """Go on with segments of which these token ids were read, ``[n]`` int64 a row; they are in no saved
        tensors."""
        self.begun = list(begun) if self.looks_ahead else self.begun

    def rewind(self) -> None:
        """Go back to where the present segments began."""
        began = torch.tensor([len(own) > 0 for own in self.begun], device=self.recent.device)
        self.recent = torch.where(began.unsqueeze(1), self.sensory, self.recent)
        self.begun = [own[:0] for own in self.begun]

    def take_rows(self, batch: int) -> None:
        """Set the number of rows, of which nothing was read yet."""
        self.past, self.begun = [[] for _ in range(batch)], self.begun[:1] * batch
        self.recent = self.sensory = self.recent[:1].repeat(batch, 1)

    def select_rows(self, index: Tensor) -> None:
        """Row i becomes old row ``index[i]`` (int64)."""
        rows = index.tolist()
        self.past, self.begun = [self.past[row] for row in rows], [self.begun[row] for row in rows]
        self.recent, self.sensory = (own[index.to(own.device)] for own in (self.recent, self.sensory))
        self.prompt = None if self.prompt is None else self.prompt[index.to(self.prompt.device)]

    def tensors(self) -> dict[str, Tensor]:
        """Everything as tensors, by name."""
        named = {f"past.{row}": torch.stack(own) for row, own in enumerate(self.past) if own}
        named |= {"recent": self.recent, "sensory": self.sensory} if self.recent.shape[1] else {}
        return named | ({} if self.prompt is None else {"prompt": self.prompt})

    def load(self, stored: Stored, seen: int, dtype: torch.dtype, vocabulary: int) -> None:
        """The inverse of `tensors`, of one row after ``seen`` tokens.

        Args:
            dtype: of the backbone's states.
            vocabulary: how many tokens there are.

        Raises:
            ValueError: something is missing or of another kind.
        """
        m, d = self.module.summary_prompt.weight.shape
        k, kinds = self.recent.shape[1], {dtype, torch.float32}
        if ended := min(seen // self.segment, self.module.config.last):
            self.past = [list(stored.take("past.0", kinds, ended, m, d))]
        if k:
            recent, sensory = (stored.take(name, torch.int64, 1, k) for name in ("recent", "sensory"))
            self.recent = in_range(recent, -1, vocabulary - 1, "a sensory token")
            self.sensory = in_range(sensory, -1, vocabulary - 1, "a sensory token")
        self.prompt = stored.take("prompt", kinds, 1, m, d) if seen else None
        stored.done()


class TextSummary(SegmentRecurrence):
    """T ‖ text ‖ T: a whole text, read at once, leaves its summary S (section 3.1).

    With P_0 in T's place it leaves the memory embeddings of a document's first segment.
    """

    def __init__(self, module: HMTModule, prompt: SoftPrompt, batch: int, device: torch.device) -> None:
        super().__init__(module, 1, batch, device)
        self.lead, self.looks_ahead = self.tail, 0
        self.prompt = prompt(batch)

    def starts(self, seen: int) -> bool:
        return seen == 0

    def room(self, seen: int) -> int:
        return sys.maxsize

    def before(self, starting: Sequence[bool], embed: Embed, summary: Tensor | None) -> tuple[Tensor, None]:
        return self.after(), None
