"""hiermem itself."""

from typing import ClassVar

from hiermem.asking import PreparedPrompt
from hiermem.eval.methods.base import Method, register_method
from hiermem.memory.state import MemoryState


@register_method
class HierMem(Method[MemoryState]):
    """hiermem as it is configured."""

    name: ClassVar[str] = "hiermem"
    parts = None
    model_options: ClassVar[tuple[str, ...]] = (
        "policy",
        "policy_set",
        "budget",
        "segment",
        "positions",
        "top_k",
        "evictor",
    )

    def read(self, text: str) -> MemoryState:
        return self.model.read(text, progress=False)

    def prompt(self, context: MemoryState, question: str) -> PreparedPrompt:
        return self.model.prepare(context, question)


@register_method
class Indexed(HierMem):
    """The same over a document that is only indexed: the backbone reads questions and passages alone."""

    name = "indexed"
    model_options = ("segment", "positions", "top_k")

    def read(self, text: str) -> MemoryState:
        return self.model.index(text, progress=False)
