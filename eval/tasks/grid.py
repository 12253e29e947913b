"""Tasks with made-up texts of several lengths and of several values of one setting: a cell for each pair."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from hiermem.errors import InputError
from hiermem.eval.metrics import accuracy, bootstrap
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
        """Share of right answers in each cell, and the mean over cells.

        Intervals draw whole texts, whose answers hang together.
        """
        cells: dict[tuple[int, int], list[Row]] = {}
        for row in rows:
            cells.setdefault((row[self.by], row["length"]), []).append(row)
        lines = [
            {self.by: value, "length": length, **_summary(answers)}
            for (value, length), answers in cells.items()
        ]
        mean = sum(line["score"] for line in lines) / len(lines)
        return {"metrics": {"score": mean}, "rows": lines, "n": len(rows), "examples": list(rows)}


def _summary(answers: Sequence[Row]) -> Row:
    """Share of right answers with its interval and, where it is known, of what was recalled; their number."""
    texts: dict[int, list[bool]] = {}
    for row in answers:
        texts.setdefault(row["text"], []).append(row["score"])
    names = [name for name in ("score", "recalled") if name in answers[0]]
    shares: Row = {name: sum(row[name] for row in answers) / len(answers) for name in names}
    return {**shares, "interval": bootstrap([*map(accuracy, texts.values())]), "n": len(answers)}
