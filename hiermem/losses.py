"""The loss of a language model, as transformers' models count it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import InputError, NonFiniteError

IGNORED_LABEL = -100


def language_loss(
    logits: Tensor, labels: Tensor, items: Tensor | int | None = None, block: int = 1024
) -> Tensor:
    """Negative log-likelihood in nats, by default the mean; float32 for a block of positions at a time."""
    if logits.shape[1] != labels.shape[1]:
        raise InputError("Labels need logits at all positions: leave logits_to_keep at 0.")
    predictions, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
    total = torch.zeros((), device=logits.device)
    for at in range(0, len(targets), block):
        total = total + F.cross_entropy(
            predictions[at : at + block].float(),
            targets[at : at + block],
            ignore_index=IGNORED_LABEL,
            reduction="sum",
        )
    count = (targets != IGNORED_LABEL).sum() if items is None else items
    if not count:
        raise InputError("No label counts: there must be one that is not -100 after the first position.")
    loss = total / count
    if not loss.isfinite():
        raise NonFiniteError("The loss is not finite: compute in float32, or lower the learning rate.")
    return loss
