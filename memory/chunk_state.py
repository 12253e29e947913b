"""The protocol of states that are carried from chunk to chunk."""

from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.frames import FrameMove
from hiermem.memory.chunk import Chunk
from hiermem.memory.stored import Stored
from hiermem.memory.tensor_state import TensorState

_State = TypeVar("_State", bound="ChunkState")


@dataclass(frozen=True)
class SavedRow:
    """Facts of a saved memory of one row, known before its tensors are loaded.

    Attributes:
        num_tokens: tokens read so far.
        prefix: embeddings that are read before a segment; some stand there if anything was read.
        dtype: of the backbone's states.
        vocabulary: how many tokens the backbone knows.
        ragged: of each group of heads, whether any slot may be empty.
        marked: whether the states at the end of a segment were saved, too, as those that `rewind` returns to.
    """

    num_tokens: int
    prefix: int
    dtype: torch.dtype
    vocabulary: int
    ragged: list[bool]
    marked: bool


class ChunkState(TensorState):
    """State that is carried from chunk to chunk: it is told of a chunk's begin, layers and end.

    All that depends on a chunk's place in the document becomes tensors in `begin`; `attend`, `commit` and
    `move` compute with tensors, and their shapes, alone.
    """

    def begin(self, chunk: Chunk) -> None:
        """Prepare for a chunk."""

    def attend(self, layer: int, qkv: QKV, attention: Attention) -> HeadOutputs:
        """Outputs of those KV heads of a layer that this state serves."""
        return []

    def commit(self, chunk: Chunk, hidden: Tensor | None) -> None:
        """Take the chunk in.

        Args:
            hidden: final states of its last columns, ``[B, n, d]``, at least of those of its suffix.
        """

    def move(self, move: FrameMove) -> None:
        """Follow the frame of positions after an eviction."""

    def rewind(self) -> None:
        """Go back to where the present segments began, of which nothing is carried into them."""

    def specs(self, stored: Stored, row: SavedRow) -> dict[str, Any]:
        """Specs of the tensors of a saved memory, for `load`."""
        return {}


class ComposedState:
    """Several states as one.

    Attributes:
        states: all of them, in the order in which they are told of a chunk.
    """

    states: list[ChunkState]

    def find(self, kind: type[_State]) -> _State | None:
        """The state of a kind, if there is one."""
        return next((state for state in self.states if isinstance(state, kind)), None)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(state.nbytes for state in self.states)

    def copy(self) -> Self:
        """An independent one with the same content, between two chunks; it shares the tensors."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.states = [state.copy() for state in self.states]
        twin.end_chunk()
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.copy())  # without what belongs to a chunk

    def end_chunk(self) -> None:
        """Drop what belongs to the present chunk alone."""
        for state in self.states:
            state.end_chunk()

    def detach(self) -> None:
        """Cut the gradients: what was read so far is a constant from here."""
        for state in self.states:
            state.detach()

    def own(self) -> None:
        """Keep every tensor in memory of its own, where a graph that is run again may write into it."""
        for state in self.states:
            state.change(Tensor.clone)

    def select_rows(self, index: Tensor) -> None:
        """Reorder, repeat or drop batch rows in place: row i becomes old row ``index[i]`` (int64)."""
        for state in self.states:
            state.select_rows(index)

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by their names in files."""
        return {name: tensor for state in self.states for name, tensor in state.tensors().items()}
