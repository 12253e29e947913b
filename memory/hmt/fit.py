"""Closed-form fits of HMT's projections: search keys, and the recall attention of a residual memory.

Dimension names: n texts or segments of a piece, p pieces of books, m memory embeddings, d backbone width.
"""

import torch
from torch import Tensor

from hiermem.memory.hmt.module import HMTModule
from hiermem.memory.modules import Projection

RIDGE = 1.0
"""Of the projections that keys are fitted with, as a share of the mean variance (docs/lab-notes/hmt.md)."""

CONTENT_RIDGE = 0.1
"""Of the projection that what is recalled begins with (docs/lab-notes/hmt.md)."""


@torch.no_grad()
def fit_search(module: HMTModule, embeddings: Tensor, summaries: Tensor, weight: float) -> None:
    """Set the projections of the trained search key (`_whiten`).

    Args:
        embeddings: of texts, ``[n, m, d]``.
        summaries: of questions, ``[q, m, d]``.
        weight: of the cosine of the two projections beside the lexical score.
    """
    sides = [(module.search_key, embeddings[:, -1]), (module.search_query, summaries[:, -1])]
    _whiten(sides, ridge=0.0)
    module.search_weight.fill_(weight)


@torch.no_grad()
def fit_recall(module: HMTModule, embeddings: Tensor, summaries: Tensor | None) -> None:
    """Set what a residual memory recalls by (`_tell_apart`), and what it recalls (`_whiten`), unless that
    adds something to P_0 already.

    Args:
        embeddings: that the segments of pieces of books leave, ``[p, n, m, d]``.
        summaries: S of the segments, as many; None where memory embeddings are the queries.
    """
    sides = [(module.key, embeddings[:, :, -1])]
    sides += [] if summaries is None else [(module.query, summaries[:, :, -1])]
    _tell_apart(sides, RIDGE)
    if module.content is not None and module.value is not None and not module.value.weight.any():
        _whiten([(module.content, embeddings[:, :, -1].flatten(0, 1))], CONTENT_RIDGE)


def _whiten(sides: list[tuple[Projection, Tensor]], ridge: float) -> None:
    """Set projections so that they centre and whiten states, each its own ``[n, d]``.

    States of a language model share a large mean and a few large directions, which hide what tells texts
    apart. All projections are onto the principal directions of the states together, each scaled to variance
    1; directions that the samples do not span stay 0.

    Args:
        ridge: what each direction's variance is raised by before it is scaled to 1, as a share of the mean
            variance: directions with little of it then count less.
    """
    weight = sides[0][0].weight
    samples = torch.cat([states.to(weight) - states.to(weight).mean(dim=0) for _, states in sides])
    _, scales, directions = torch.linalg.svd(samples / len(samples) ** 0.5, full_matrices=False)
    spanned = min(len(weight), int((scales > 1e-4 * scales[0]).sum()))
    variances = scales.square() + ridge * scales.square().sum() / samples.shape[1]
    whitening = (directions / variances.sqrt().unsqueeze(1))[:spanned]
    for projection, states in sides:
        projection.weight.zero_()
        projection.weight[:spanned] = whitening
        projection.bias.copy_(-projection.weight @ states.to(weight).mean(dim=0))


def _tell_apart(sides: list[tuple[Projection, Tensor]], ridge: float) -> None:
    """Set projections so that what varies within a piece of a book counts little, each for its own states
    ``[p, n, d]`` of p pieces.

    What differs from segment to segment of one piece, and from one kind of state to the other, is whitened
    away (linear discriminant analysis); of what is left the largest directions are kept.

    Args:
        ridge: what each direction's variance within pieces is raised by, as a share of the mean variance.
    """
    weight = sides[0][0].weight
    means = [states.to(weight).mean(dim=(0, 1)) for _, states in sides]
    samples = torch.cat([states.to(weight) - mean for (_, states), mean in zip(sides, means, strict=True)], 1)
    within = (samples - samples.mean(dim=1, keepdim=True)).flatten(0, 1)
    variances, directions = torch.linalg.eigh(within.T @ within / len(within))
    variances = variances.clamp(min=0)
    damping = directions / (variances + ridge * variances.mean()).sqrt()  # [d, d], a direction a column
    _, _, largest = torch.linalg.svd(samples.flatten(0, 1) @ damping, full_matrices=False)
    kept = largest[: len(weight)] @ damping.T
    for (projection, _), mean in zip(sides, means, strict=True):
        projection.weight.zero_()
        projection.weight[: len(kept)] = kept
        projection.bias.copy_(-projection.weight @ mean)
