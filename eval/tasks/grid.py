"""Tasks with made-up texts of several lengths and of several values of one setting: a cell for each pair."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from hiermem.errors import InputError
from hiermem.eval.metrics import by_condition
from hiermem.eval.tasks.base import AnswerTask, option
from hiermem.eval.tasks.documents import DocumentTask, Question

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.eval.answering import Response

Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A text in the grid.

    Attributes:
        value: of the setting.
        length: in tokens.
        index: of the text in its cell.
    """

    value: int
    length: int
    index: int

    def __str__(self) -> str:
        return f"{self.value}/{self.length}/{self.index}"


@dataclass(frozen=True, kw_only=True)
class GridTask(DocumentTask):
    """A task whose rows are scores by a setting and by the length of the text.

    Attributes:
        across: field with the values of the setting.
        by: what one of them is called in rows and tables.
    """

    across: ClassVar[str]
    by: ClassVar[str]
    headline = "score"
    axis = "length"
    told = ("lengths", "tasks", "hops", "pairs")

    lengths: tuple[int, ...] = option((1000, 8000), help="Text lengths in tokens, comma-separated.")
    limit: int = option(20, help="Texts in each cell.", least=1)
    seed: int = option(0, help="Seed of everything that is drawn at random.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.across, "lengths"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not values:
                raise InputError(f"--{name} takes at least one number, and none twice.")

    def load(self, config: HierMemConfig) -> Any:
        """Nothing: by default, all texts are made."""

    def texts(self, data: Any) -> Iterable[str]:
        return ()

    def settings(self, data: Any, config: HierMemConfig) -> dict[str, Any]:
        """All options, the method under the name that it has in every result."""
        values = super().settings(data, config)
        of_method = {entry.name for entry in fields(AnswerTask)}
        settings = {name: value for name, value in values.items() if name not in of_method}
        return settings | {"system": self.method, **self.method_options()}

    def places(self) -> Iterator[Place]:
        """Every text, cell by cell."""
        for value in getattr(self, self.across):
            for length in self.lengths:
                for index in range(self.limit):
                    yield Place(value, length, index)

    def about(self, place: Place) -> tuple[tuple[str, Any], ...]:
        """Settings of a text, for the rows of its questions."""
        return ((self.by, place.value), ("length", place.length), ("text", place.index))

    @abstractmethod
    def is_right(self, question: Question, output: str) -> bool:
        """Whether an answer is right."""

    def scores(self, question: Question, response: Response) -> Row:
        return {"score": self.is_right(question, response.text)}

    def result(self, rows: Sequence[Row]) -> Row:
        """Share of right answers in each cell, and the mean over cells."""
        return by_condition(rows, self.by, "length")
