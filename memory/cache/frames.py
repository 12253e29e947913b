"""Frame positions: where tokens stand for the rotary embedding once a document outgrows the trained range.

Every token has a *true position*: its index among the tokens that were read. The backbone sees *frame
positions*: true positions measured from the start of a frame that moves along with the document, so that
they never leave the range the backbone was trained on. A key is cached rotated at its frame position; when
the frame moves, the cached keys are turned by the difference, which is exact because rotations add up.

Dimension names: B batch, Q new tokens, T cached tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.chunk import Chunk

POSITION_MODES = ("distance", "absolute", "compact")

# The frame moves in steps of this share of the range: rarely enough that a key is rounded to its dtype a
# handful of times before it reaches the far edge (where it stays), and that turning keys costs nothing.
FRAME_STEP_SHARE = 8


@dataclass(frozen=True)
class FrameMove:
    """Move of the frame: where cached tokens stand from here; each is ``[B, 1, 1]`` int64.

    Attributes:
        origin: true position of frame position 0; None: tokens stand side by side, without gaps.
        end: frame position of the next token, where there are no gaps.
        shift: what the frame positions of the newest tokens change by; None: by nothing.
    """

    origin: Tensor | None = None
    end: Tensor | None = None
    shift: Tensor | None = None

    def position_ids(self, positions: Tensor) -> Tensor:
        """Frame positions of cached tokens ``[B, G, T]`` from their true ones; none lies before the frame."""
        if self.origin is not None:
            return (positions - self.origin).clamp(min=0)  # what lies before is held at the frame's edge
        assert self.end is not None
        tokens = positions.shape[2]
        place = torch.arange(tokens, device=positions.device)
        return (place + self.end - tokens).clamp(min=0).expand_as(positions)


@dataclass(frozen=True)
class Decision:
    """An eviction, made after a chunk in some rows.

    Attributes:
        rows: in which.
        num_tokens: tokens that each row has read by then, ``[B, 1, 1]`` int64.
        move: where cached tokens stand from there; None: where they stood, or side by side.
    """

    rows: tuple[bool, ...]
    num_tokens: Tensor
    move: FrameMove | None


@dataclass(frozen=True)
class Counts:
    """Counts of what was read.

    They stand apart, since a compiled step takes numbers that it touches for constants.

    Attributes:
        num_tokens: tokens read so far, per row.
        columns: width of the input read so far, padding included.
        peak_tokens: most tokens that any KV head held so far.
    """

    num_tokens: tuple[int, ...]
    columns: int = 0
    peak_tokens: int = 0


@dataclass(frozen=True)
class PositionFrames:
    """Places of a batch's rows in their documents, and the frame that their next tokens are read in.

    Attributes:
        mode: one of `POSITION_MODES`.
        interval: tokens between two evictions.
        trained_range: positions that the backbone was trained on.
        counts: how much was read.
        next_frame: frame position of the next token where there are no gaps, per row.
    """

    mode: str
    interval: int
    trained_range: int
    counts: Counts
    next_frame: tuple[int, ...]

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Tokens read so far, per row."""
        return self.counts.num_tokens

    def at(self, num_tokens: Sequence[int], next_frame: Sequence[int]) -> "PositionFrames":
        """The same for rows that stand elsewhere."""
        counts = replace(self.counts, num_tokens=tuple(num_tokens))
        return replace(self, counts=counts, next_frame=tuple(next_frame))

    def starts(self) -> list[int]:
        """True position of frame position 0 in each row; in the mode `compact`, the true minus the
        frame position of the next token."""
        if self.mode == "absolute":
            return [0] * len(self.num_tokens)
        if self.mode == "compact":
            return [count - frame for count, frame in zip(self.num_tokens, self.next_frame, strict=True)]
        return [frame_start(count, self.interval, self.trained_range) for count in self.num_tokens]

    def first(self) -> list[int]:
        """Frame position of each row's next token."""
        return [count - start for count, start in zip(self.num_tokens, self.starts(), strict=True)]

    def undecided(self, row: int) -> range:
        """Positions of the tokens that a row has read since an eviction was due."""
        count = self.num_tokens[row]
        return range(count - count % self.interval, count)

    def room(self, rows: Sequence[bool]) -> int:
        """Tokens that may be read until an eviction is due in one of the chosen rows."""
        chosen = (count for count, reads in zip(self.num_tokens, rows, strict=True) if reads)
        return min(self.interval - count % self.interval for count in chosen)

    def chunk(self, ids: Tensor, valid: Sequence[int], learned: bool) -> Chunk:
        """The next tokens ``ids [B, Q]``, of which each row's first ``valid`` are real.

        Args:
            learned: whether positions are learned, so that there are no others than `trained_range`.

        Raises:
            InputError: they would leave the learned positions.
        """
        first, width, device = self.first(), ids.shape[1], ids.device
        if learned and max(a + n for a, n in zip(first, valid, strict=True)) > self.trained_range:
            raise InputError(
                f"This backbone has learned positions, which end at {self.trained_range}: use the position "
                f"mode distance, or compact with a budget that leaves room for {width} new tokens."
            )
        columns = torch.arange(width, device=device)
        positions = torch.tensor(self.num_tokens, device=device).unsqueeze(1) + columns
        position_ids = torch.tensor(first, device=device).unsqueeze(1) + columns
        if padded := any(count < width for count in valid):
            real = columns < torch.tensor(valid, device=device).unsqueeze(1)
            positions = positions.masked_fill(~real, -1)
            position_ids = position_ids.masked_fill(~real, 0)
        return Chunk(ids, positions, position_ids, tuple(valid), self.num_tokens, padded)

    def next(self, chunk: Chunk, columns: int, held: int) -> tuple["PositionFrames", Decision | None]:
        """The places of rows once a chunk was read, and the eviction that is due then.

        Args:
            columns: of the input that it was asked for.
            held: most tokens that any KV head holds then.
        """
        after = replace(
            self,
            counts=Counts(
                tuple(a + b for a, b in zip(chunk.num_tokens, chunk.valid, strict=True)),
                self.counts.columns + columns,
                max(self.counts.peak_tokens, held),
            ),
            next_frame=tuple(a + b for a, b in zip(self.next_frame, chunk.valid, strict=True)),
        )
        rows = zip(after.num_tokens, chunk.valid, strict=True)
        due = [new > 0 and count % self.interval == 0 for count, new in rows]
        return after, after.decision(due, self.starts(), chunk.ids.device) if any(due) else None

    def decision(self, rows: Sequence[bool], before: list[int], device: torch.device) -> Decision:
        """An eviction in some rows, after the present tokens.

        Args:
            before: `starts` of the frames that the cached keys are rotated in.
        """
        num_tokens, after = torch.tensor(self.num_tokens, device=device).view(-1, 1, 1), self.starts()
        if self.mode == "compact" or after == before:
            return Decision(tuple(rows), num_tokens, None)
        # A token at frame position p - old stands at p - new from here.
        shift = [old - new for old, new in zip(before, after, strict=True)]
        origin, by = (torch.tensor(rows, device=device).view(-1, 1, 1) for rows in (after, shift))
        return Decision(tuple(rows), num_tokens, FrameMove(origin, None, by))

    def close_gaps(self, held: Sequence[int], least: Sequence[int], rows: Sequence[bool]) -> "PositionFrames":
        """The next tokens right after those that are held, in the chosen rows.

        Args:
            held: most tokens that any KV head holds, per row.
            least: the least frame position of the next token: what is read before a segment needs room.
        """
        every = zip(held, least, rows, self.next_frame, strict=True)
        frames = tuple(max(tokens, low) if due else frame for tokens, low, due, frame in every)
        return replace(self, next_frame=frames)

    def moved_from(self, before: "PositionFrames", device: torch.device) -> FrameMove:
        """The move of `close_gaps`, which was called on ``before``."""
        shift = [new - old for new, old in zip(self.next_frame, before.next_frame, strict=True)]
        end = torch.tensor(self.next_frame, device=device).view(-1, 1, 1)
        return FrameMove(None, end, torch.tensor(shift, device=device).view(-1, 1, 1) if any(shift) else None)

    def holding(self, num_tokens: int, held: int, device: torch.device) -> tuple["PositionFrames", FrameMove]:
        """The places of one row, of which nothing was read, once it holds some of so many first tokens; and
        where these then stand.

        Args:
            held: most of them that any KV head holds.
        """
        frame = held if self.mode == "compact" else num_tokens
        after = replace(self, counts=Counts((num_tokens,), num_tokens, held), next_frame=(frame,))
        place = torch.tensor(held if self.mode == "compact" else after.starts()[0], device=device)
        place = place.view(1, 1, 1)
        return after, FrameMove(None, place) if self.mode == "compact" else FrameMove(place)

    def bookkeeping(self) -> dict[str, Any]:
        """The entries that files hold."""
        return {
            "seen": list(self.num_tokens),
            "columns": self.counts.columns,
            "peak_tokens": self.counts.peak_tokens,
            "next_frame": list(self.next_frame),
        }

    def restored(self, counts: Mapping[str, Any], held: int, prefix: int) -> "PositionFrames":
        """The inverse of `bookkeeping`, of one row.

        Args:
            held: most tokens that any KV head holds.
            prefix: embeddings that are read before a segment.

        Raises:
            ValueError: the numbers do not fit.
        """
        if held > counts["peak_tokens"]:
            raise ValueError("more tokens are cached than ever were")
        if counts["next_frame"][0] > counts["seen"][0] + prefix:
            raise ValueError("next_frame leaves its range")
        read = Counts(tuple(counts["seen"]), counts["columns"], counts["peak_tokens"])
        return replace(self, counts=read, next_frame=tuple(counts["next_frame"]))

    def select_rows(self, rows: Sequence[int]) -> "PositionFrames":
        """Row i becomes old row ``rows[i]``."""
        return self.at(*([old[row] for row in rows] for old in (self.num_tokens, self.next_frame)))


def frame_start(num_tokens: int, interval: int, trained_range: int) -> int:
    """True position of frame position 0 while the interval that holds token ``num_tokens`` is read.

    The frame depends on the interval alone, not on how it is cut into chunks, so reading whole, in pieces
    or resumed gives the same positions. Within an interval no frame position reaches ``trained_range``.
    """
    # The end of the interval counts, not the token: all tokens of an interval are read in one frame.
    interval_end = (num_tokens // interval + 1) * interval
    excess = interval_end - trained_range
    if excess <= 0:
        return 0
    step = max(trained_range // FRAME_STEP_SHARE, interval)
    # A step above range - interval would move the frame past tokens of the present interval.
    step = min(step, max(trained_range - interval, 1))
    return -(-excess // step) * step
