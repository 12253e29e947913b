"""hiermem itself."""

from typing import ClassVar

from hiermem.asking import PreparedPrompt
from hiermem.eval.methods.base import Method, register_method
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.state import MemoryState
from hiermem.recalling import no_kv_tier


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
        self._check_passages()
        return self.model.read(text, progress=False)

    def _check_passages(self) -> None:
        """Refuse to read what no question could be asked of.

        Raises:
            InputError: passages are to stand there as keys and values, which reading would not keep.
        """
        if self.model.config.asking.passages == "kv" and not self._keeps_kv:
            raise no_kv_tier()

    @property
    def _keeps_kv(self) -> bool:
        return KVTier.name in self.model.config.longterm.tiers

    def prompt(self, context: MemoryState, question: str) -> PreparedPrompt:
        return self.model.prepare(context, question)


@register_method
class Indexed(HierMem):
    """The same over a document that is only indexed: the backbone reads questions and passages alone."""

    name = "indexed"
    model_options = ("segment", "positions", "top_k")

    @property
    def _keeps_kv(self) -> bool:
        return False

    def read(self, text: str) -> MemoryState:
        self._check_passages()
        return self.model.index(text, progress=False)
