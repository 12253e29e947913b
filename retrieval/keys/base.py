"""Search key: numbers of a text by which the inner product with a question's finds it.

The keys of a text stand side by side in one index. Weights are the question's, so the index stays as it is
when they change.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor

from hiermem.errors import InputError

WIDEST = 1 << 20
"""Numbers of a search key."""


class Keyed(Protocol):
    """Text that gets a key, such as a record of the long-term memory.

    Attributes:
        text: its characters.
        embedding: its memory embeddings, ``[m, d]``; None where the model makes none.
    """

    @property
    def text(self) -> str: ...
    @property
    def embedding(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Text:
    """A text that is no record; see `Keyed`."""

    text: str
    embedding: Tensor | None = None


@dataclass(frozen=True)
class UnitText:
    """A sentence or row that is no record; see `Keyed`.

    Attributes:
        paragraph: a number that the units of one paragraph share, which stand there one after the other.
        embedding: made of the backbone's states while it read the unit, ``[W]``; None: there is none.
    """

    text: str
    paragraph: int
    embedding: Tensor | None = None


@dataclass(frozen=True)
class Question:
    """A question, as keys and tiers see it.

    Attributes:
        summary: S, ``[m, d]``; None where the model makes none.
        meaning: the question in plain words, where ``text`` has more or repeats some to find by; empty: as
            ``text`` is.
        embedding: made of the backbone's states as those of units are, ``[W]``; None: there is none.
        known: share of its words that the backbone's tokenizer knows whole, where there is an embedding.
    """

    text: str
    summary: Tensor | None = None
    meaning: str = ""
    embedding: Tensor | None = None
    known: float = 1.0


@dataclass
class SearchKey(ABC):
    """One part of the search keys of a memory.

    A subclass is a dataclass in one file, and one line in `hiermem.retrieval.keys`: its fields are its
    settings. To make one costs little: what takes long, such as loading a model, waits until it is needed.

    Attributes:
        weight: factor of its inner products beside those of the other keys.
        of_units: whether the texts that get keys are the sentences and rows of a segment, each for itself;
            the best of them counts for the segment. Otherwise they are whole segments.
        of_states: whether they are made of what the backbone's states give, so that an index has none.
    """

    weight: float = 1.0

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    of_units: ClassVar[bool] = False
    of_states: ClassVar[bool] = False
    supplied: ClassVar[frozenset[str]] = frozenset()
    """Fields that are no settings by name; see `hiermem.retrieval.keys.new_search_keys`."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise InputError(f"The weight of a search key must not be negative, not {self.weight}.")

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers of a key."""

    @abstractmethod
    def document_keys(self, records: Sequence[Keyed]) -> Tensor:
        """Keys of texts, each of its own text alone, ``[n, width]`` float32 on the CPU."""

    def unit_keys(self, units: Sequence[UnitText]) -> Tensor:
        """Keys of the units of a text, in its order, ``[n, width]`` float32 on the CPU."""
        return self.document_keys(units)

    @abstractmethod
    def query_key(self, question: Question) -> Tensor:
        """Key of a question under the statistics so far, ``[width]`` float32 on the CPU."""

    def trust(self, question: Question) -> float:
        """How far its inner products with a question tell anything, from 0 to 1: a factor of its weight."""
        return 1.0

    def codes(self, question: Question) -> frozenset[str]:
        """Words of a question that its inner products tell nothing of, such as codes."""
        return frozenset()

    def weight_for(self, question: Question) -> float:
        """Weight of its inner products with this question."""
        return self.weight * self.trust(question)

    def check_available(self) -> None:
        """Refuse to be used where something is not installed; nothing is loaded for it.

        Raises:
            InputError: it is not.
        """
        return

    def observe(self, records: Sequence[Keyed]) -> None:
        """Count complete segments in the statistics; document keys never change by it.

        Tensors and tables are replaced, not written in place, as copies share them.
        """
        return

    def copy(self) -> Self:
        """An independent one with the same statistics; costs nothing."""
        return copy(self)

    @property
    def odds(self) -> tuple[float, float] | None:
        """Of keys of units: slope and middle of the logistic curve from the best unit's inner product to how
        likely the document holds an answer; None: not known."""
        return None

    @classmethod
    def names_files_with(cls, settings: Mapping[str, Any]) -> bool:
        """Whether these settings name files or addresses, which are not opened because a memory says so."""
        return False

    @property
    def digest(self) -> str:
        """Short hash of all that keys depend on beside settings and texts, such as weights; empty: nothing.

        A memory is refused where it has another one.
        """
        return ""

    def state_dict(self) -> dict[str, Tensor]:
        """Statistics by name."""
        return {}

    def add_statistics(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Count what keys of other documents have counted, too, as their `state_dict` gave it.

        Raises:
            InputError: they are no statistics of such a key, or it cannot count several documents together.
        """
        if any(states):
            raise InputError(f"The search key {self.name} cannot count several documents: leave it out.")

    def remove_statistics(self, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Count no longer what `add_statistics` added.

        Raises:
            InputError: it was not added.
        """
        if any(states):
            raise InputError(f"The search key {self.name} cannot count several documents: leave it out.")

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over statistics that `state_dict` gave, in place of the present ones.

        Raises:
            ValueError: they are none.
        """
        if state:
            raise ValueError(f"there is no place for {min(state)!r} of the search key {self.name}")
