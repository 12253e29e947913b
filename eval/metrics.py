"""Metrics of answers, and how sure they are."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

COSTS = {"prompt_tokens": "prompt tokens", "live_bytes": "live MiB", "first_token_seconds": "first token, s"}
"""Costs of an answer, which its row holds by these names; see `hiermem.eval.answering.Response`."""


def accuracy(right: Sequence[bool]) -> float:
    """Share of right answers."""
    return sum(right) / len(right)


def macro_f1(predictions: Sequence[str], targets: Sequence[str], labels: Sequence[str]) -> float:
    """Mean over ``labels`` of the harmonic mean of precision and recall; 0 for one never predicted right."""
    scores = []
    for label in labels:
        hits = sum(pair == (label, label) for pair in zip(predictions, targets, strict=True))
        scores.append(2 * hits / max(list(predictions).count(label) + list(targets).count(label), 1))
    return sum(scores) / len(scores)


def bootstrap(values: Sequence[float], draws: int = 1000, share: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean, from ``draws`` resamples with a fixed seed (Efron, 1979)."""
    return bootstrap_groups([[value] for value in values], draws, share)


def bootstrap_groups(
    groups: Sequence[Sequence[float]], draws: int = 1000, share: float = 0.95
) -> tuple[float, float]:
    """The same for values that come in groups, such as questions about one text: groups are resampled."""
    rng = random.Random(0)
    sums = [(sum(group), len(group)) for group in groups]
    means = []
    for _ in range(draws):
        drawn = rng.choices(sums, k=len(sums))
        means.append(sum(total for total, _ in drawn) / sum(count for _, count in drawn))
    means.sort()
    outside = (1 - share) / 2
    return means[int(outside * draws)], means[min(int((1 - outside) * draws), draws - 1)]


def means(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """A result's ``metrics``, ``intervals`` and ``n`` of rows; what has no value is left out."""
    measured = [name for name in names if all(row[name] is not None for row in rows)]
    values = {name: [float(row[name]) for row in rows] for name in measured}
    metrics = {name: sum(each) / len(each) for name, each in values.items()}
    return {
        "metrics": metrics,
        "intervals": {name: bootstrap(each) for name, each in values.items()},
        "n": len(rows),
    }


def perplexity(nll_sum: float, count: int) -> float:
    """exp of the mean negative log-likelihood; infinite when nothing was counted."""
    try:
        return math.exp(nll_sum / count)
    except (ZeroDivisionError, OverflowError):
        return math.inf


def mean_costs(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over answers of those costs that every row has."""
    names = [name for name in COSTS if all(row.get(name) is not None for row in rows)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in names}


def by_condition(rows: Sequence[Mapping[str, Any]], *names: str) -> dict[str, Any]:
    """The result of a run: a row for each combination of conditions, and the mean of their scores.

    Args:
        rows: of answers, each with ``score`` and its conditions; ``recalled`` where it is known, and ``text``
            where several are about one: intervals then draw whole texts, whose answers hang together.
        names: of the conditions.
    """
    cells: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(tuple(row[name] for name in names), []).append(row)
    lines: list[dict[str, Any]] = [
        {**dict(zip(names, values, strict=True)), **_shares(answers)} for values, answers in cells.items()
    ]
    mean = sum(line["score"] for line in lines) / len(lines)
    return {"metrics": {"score": mean}, "rows": lines, "n": len(rows), "examples": list(rows)}


def _shares(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of the answers of one cell, the interval of their score, and their number."""
    texts: dict[Any, list[float]] = {}
    for place, row in enumerate(answers):
        texts.setdefault(row.get("text", place), []).append(row["score"])
    names = [name for name in ("score", "recalled") if name in answers[0]]
    shares = {name: sum(row[name] for row in answers) / len(answers) for name in names}
    interval = bootstrap([sum(scores) / len(scores) for scores in texts.values()])
    return {**shares, "interval": interval, "n": len(answers)}
