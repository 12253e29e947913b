"""The memory that a question is put to, as far as asking knows it: of one document, or of many."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.longterm import Hit, SegmentRecord
from hiermem.memory.places import Place
from hiermem.memory.tier import Tier
from hiermem.memory.unit_index import UnitScale
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.passages import SegmentTexts
from hiermem.retrieval.keys import LexicalKey, Question


class Recall(Protocol):
    """Long-term memory, as far as asking knows it.

    Attributes:
        partial: the record that is not complete yet, if there is one.
    """

    partial: SegmentRecord | None

    @property
    def key(self) -> LexicalKey:
        """The lexical key, whose statistics of words choose passages."""

    @property
    def summary(self) -> HMTModule | None:
        """Parameters of the memory embeddings that a search key is made of; None: none is."""

    @property
    def reads_states(self) -> bool: ...

    def unit_scale(self, question: Question) -> UnitScale | None:
        """Meaning of the scores of units; None: there is no telling."""

    def recall(self, question: Question, k: int, eligible: Callable[[SegmentRecord], bool]) -> list[Hit]:
        """The best ``k`` records that are ``eligible``, best first."""


class AskedMemory(SegmentTexts, Protocol):
    """Memory of one document or of many that a question is put to."""

    @property
    def longterm(self) -> Recall: ...
    @property
    def working(self) -> WorkingMemory: ...
    @property
    def working_config(self) -> WorkingMemoryConfig: ...
    @property
    def tiers(self) -> tuple[Tier, ...]: ...
    @property
    def answers_alone(self) -> bool:
        """Whether the working memory can stand before a question without any passages."""

    def texts(self) -> Iterable[str]:
        """Texts whose words may be other forms of a question's."""

    def place(self, document: str, character: int) -> Place:
        """The page and chapter of a character, or its line where there are no pages."""

    def records(self) -> list[SegmentRecord]:
        """All records of the one document."""

    def recalled_beside(
        self, question: Question, k: int, known: Sequence[Hit], eligible: Callable[[SegmentRecord], bool]
    ) -> list[Hit]:
        """Records that further tiers recall, but those ``known``."""
