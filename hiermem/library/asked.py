"""A library as the memory that a question is put to."""

from collections.abc import Callable, Iterable, Sequence

from hiermem.library.document_index import Scope
from hiermem.library.index import LibraryIndex
from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.places import Place
from hiermem.memory.records import Hit, SegmentRecord
from hiermem.memory.tier import Tier
from hiermem.memory.unit_index import UnitScale
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.retrieval.keys import LexicalKey, Question


class LibraryRecall:
    """Long-term memory of all documents in a scope."""

    partial: SegmentRecord | None = None

    def __init__(self, index: LibraryIndex, scope: Scope) -> None:
        self._index, self._scope = index, scope

    @property
    def key(self) -> LexicalKey:
        """The lexical key, with the statistics of all documents."""
        return self._index.queries.key

    @property
    def summary(self) -> HMTModule | None:
        """Parameters of the memory embeddings that a search key is made of."""
        return self._index.queries.summary

    @property
    def reads_states(self) -> bool:
        """Whether a search key is made of the backbone's states."""
        return self._index.queries.reads_states

    def unit_scale(self, question: Question) -> UnitScale | None:
        """Meaning of the scores of units; see `LongTermMemory.unit_scale`."""
        return self._index.queries.unit_scale(question)

    def recall(
        self, question: Question, k: int, eligible: Callable[[SegmentRecord], bool] = lambda _: True
    ) -> list[Hit]:
        """The best ``k`` segments, best first; see `LibraryIndex.recall`."""
        return self._index.recall(question, k, self._scope, eligible)


class AskedLibrary:
    """The part of a library that a question is about.

    There is no working memory that could stand before a question: answers come from passages alone.

    Args:
        new_working_memory: makes an empty one, for prompts.
        working_config: settings of those.
    """

    tiers: tuple[Tier, ...] = ()
    answers_alone = False

    def __init__(
        self,
        index: LibraryIndex,
        scope: Scope,
        new_working_memory: Callable[[WorkingMemoryConfig], WorkingMemory],
        working_config: WorkingMemoryConfig,
    ) -> None:
        self._index, self._scope, self._new_working_memory = index, scope, new_working_memory
        self.working_config = working_config
        self.longterm = LibraryRecall(index, scope)

    @property
    def working(self) -> WorkingMemory:
        """An empty working memory."""
        return self._new_working_memory(self.working_config)

    def segment_text(self, document: str, segment: int) -> str:
        """The text of a segment, as far as it is in scope; empty where there is none of that number."""
        index = self._index.document(document)
        return index.segment_text(segment, index.limit(self._scope))

    def place(self, document: str, character: int) -> Place:
        """The page and chapter of a character, or its line where there are no pages."""
        return self._index.document(document).place(character)

    def texts(self) -> Iterable[str]:
        """No text: forms of a question's words are found by their n-grams; to look through all documents for
        each word that none of them has would take too long."""
        return ()

    def records(self) -> list[SegmentRecord]:
        """No record, since there are no tiers that have something of them."""
        return []

    def recalled_beside(
        self, question: Question, k: int, known: Sequence[Hit], eligible: Callable[[SegmentRecord], bool]
    ) -> list[Hit]:
        """No record, since there are no further tiers."""
        return []
