"""Teacher-forced scoring: of a text that is read once, and of answers to a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.errors import NonFiniteError
from hiermem.likelihood import last_logits
from hiermem.memory.working import WorkingMemory, chunks
from hiermem.text import encode

if TYPE_CHECKING:
    from hiermem.asking import PreparedPrompt
    from hiermem.model import HierMemModel


def stream_nll(model: "HierMemModel", memory: WorkingMemory, ids: Tensor) -> Iterator[Tensor]:
    """Negative log-likelihood in nats of each token after the first, given all that came before.

    Args:
        memory: where the text goes on; it moves along.
        ids: ``[n]`` int64.

    Yields float32 tensors, one per chunk; together they hold ``n - 1`` values, each token scored once.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    ids = ids.to(model.device)
    last: Tensor | None = None
    for at, take in chunks(memory, [len(ids)], model.config.chunk):
        logits = model.adapter.read_chunk(memory, ids[None, at : at + take], [take], logits=take)[0]
        targets = ids[at : at + take]
        if last is not None:
            logits = torch.cat((last, logits))
        else:
            targets = targets[1:]
        last = logits[-1:]
        nll = F.cross_entropy(logits[:-1].float(), targets, reduction="none").cpu()
        if not nll.isfinite().all():
            raise NonFiniteError(f"The likelihood of tokens {at} to {at + take} is not finite: use float32.")
        yield nll


def prefill(model: "HierMemModel", prompt: "PreparedPrompt") -> "PreparedPrompt":
    """The same prompt, read up to its last token: what is scored after it need not read it again."""
    if prompt.ids.shape[1] > 1:
        model.read_ids(prompt.working, prompt.ids[:, :-1])
    return replace(prompt, ids=prompt.ids[:, -1:])


class AnswerScore(NamedTuple):
    """How a prompt is followed by an answer.

    Attributes:
        nll: negative log-likelihood in nats of each token of the answer, ``[n]`` float32.
        exact: whether greedy decoding would give exactly this answer first.
    """

    nll: Tensor
    exact: bool


def score_answer(model: "HierMemModel", prompt: "PreparedPrompt", answer: str, lead: str = "") -> AnswerScore:
    """Read ``prompt`` and score ``answer`` as what follows it; the prompt's memory moves on.

    Args:
        lead: words between the two, which are not scored.
    """
    targets = torch.tensor(encode(model.tokenizer, answer), dtype=torch.int64)
    return score_tokens(model, replace(prompt, ids=_begun(model, prompt, lead)), targets)


def score_tokens(model: "HierMemModel", prompt: "PreparedPrompt", targets: Tensor) -> AnswerScore:
    """Read ``prompt`` and score ``targets [n]`` int64 as what follows it; the prompt's memory moves on."""
    targets = targets.to(model.device)
    ids = torch.cat((prompt.ids, targets[None, :-1]), dim=1)
    logits = last_logits(model, prompt.working, ids, len(targets))
    nll = F.cross_entropy(logits, targets, reduction="none").cpu()
    return AnswerScore(nll, bool((logits.argmax(-1) == targets).all()))


def score_options(
    model: "HierMemModel", prompt: "PreparedPrompt", options: Sequence[str], lead: str = ""
) -> list[float]:
    """Log-likelihood in nats of each option as the answer to ``prompt``, which is read once.

    Args:
        lead: words between the two, which are not scored.
    """
    tokens = [encode(model.tokenizer, option) for option in options]
    first = last_logits(model, prompt.working, _begun(model, prompt, lead), 1)[0].log_softmax(-1)
    scores = []
    for ids in tokens:
        score = float(first[ids[0]])
        if len(ids) > 1:
            rest = torch.tensor(ids, device=model.device)
            logits = last_logits(model, prompt.working.copy(), rest[None, :-1], len(ids) - 1)
            score -= float(F.cross_entropy(logits, rest[1:], reduction="sum"))
        scores.append(score)
    return scores


def _begun(model: "HierMemModel", prompt: "PreparedPrompt", lead: str) -> Tensor:
    """The rest of a prompt that is to be read, with how its answer begins: ``[1, n]`` int64."""
    words = torch.tensor([encode(model.tokenizer, lead)], dtype=torch.int64)
    return torch.cat((prompt.ids, words.to(model.device)), dim=1)
