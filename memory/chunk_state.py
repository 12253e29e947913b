"""The protocol of what is carried from chunk to chunk."""

from torch import Tensor

from hiermem.memory.attention import QKV, Attention, HeadOutputs
from hiermem.memory.cache.frames import FrameMove
from hiermem.memory.chunk import Chunk
from hiermem.memory.tensor_state import TensorState


class ChunkState(TensorState):
    """What is carried from chunk to chunk: it is told of a chunk's begin, of its layers, and of its end.

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
