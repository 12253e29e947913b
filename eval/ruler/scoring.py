"""Scores of RULER and the results of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from hiermem.eval.metrics import by_condition


def share_found(answer: str, references: Sequence[str]) -> float:
    """Share of the references that the answer holds, upper and lower case alike (string_match_all)."""
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


def any_found(answer: str, references: Sequence[str]) -> float:
    """1 where the answer holds one of the references, else 0 (string_match_part)."""
    return float(share_found(answer, references) > 0)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result of a run: a row for each task and length, and the mean of their scores.

    Args:
        rows: of examples, each with ``task``, ``length`` and ``score``.
    """
    return by_condition(rows, "task", "length")
