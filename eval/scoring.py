"""Teacher-forced scoring: of a text that is read once, and of answers to a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hiermem.asking import PreparedPrompt
from hiermem.errors import NonFiniteError
from hiermem.memory.working import WorkingMemory
from hiermem.reader import Reader
from hiermem.text import encode


def stream_nll(reader: Reader, memory: WorkingMemory, ids: Tensor) -> Iterator[Tensor]:
    """Negative log-likelihood in nats of each token after the first, given all that came before.

    Args:
        memory: where the text goes on; it moves along.
        ids: ``[n]`` int64.

    Yields float32 tensors, one per chunk; together they hold ``n - 1`` values, each token scored once.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    ids = ids.to(reader.device)
    last: Tensor | None = None
    for at, block in reader.stream(memory, ids[None], logits=range(len(ids))):
        logits, end = block[0], at + block.shape[1]
        targets = ids[at:end]
        if last is not None:
            logits = torch.cat((last, logits))
        else:
            targets = targets[1:]
        last = logits[-1:]
        nll = F.cross_entropy(logits[:-1].float(), targets, reduction="none").cpu()
        if not nll.isfinite().all():
            raise NonFiniteError(f"The likelihood of tokens {at} to {end} is not finite: use float32.")
        yield nll


def prefill(reader: Reader, prompt: PreparedPrompt) -> PreparedPrompt:
    """The same prompt, read up to its last token: what is scored after it need not read it again."""
    if prompt.ids.shape[1] > 1:
        reader.read(prompt.working, prompt.ids[:, :-1])
    return replace(prompt, ids=prompt.ids[:, -1:])


class AnswerScore(NamedTuple):
    """Likelihood of an answer after a prompt.

    Attributes:
        nll: negative log-likelihood in nats of each token of the answer, ``[n]`` float32.
        exact: whether greedy decoding would give exactly this answer first.
    """

    nll: Tensor
    exact: bool


def score_answer(reader: Reader, prompt: PreparedPrompt, answer: str, lead: str = "") -> AnswerScore:
    """Read ``prompt`` and score ``answer`` as what follows it; the prompt's memory moves on.

    Args:
        lead: words between the two, which are not scored.
    """
    targets = torch.tensor(encode(reader.tokenizer, answer), dtype=torch.int64)
    return score_tokens(reader, begun(reader, prompt, lead), targets)


def score_tokens(reader: Reader, prompt: PreparedPrompt, targets: Tensor) -> AnswerScore:
    """Read ``prompt`` and score ``targets [n]`` int64 as what follows it; the prompt's memory moves on."""
    targets = targets.to(reader.device)
    ids = torch.cat((prompt.ids, targets[None, :-1]), dim=1)
    logits = reader.logits(prompt.working, ids, len(targets))[0]
    nll = F.cross_entropy(logits, targets, reduction="none").cpu()
    return AnswerScore(nll, bool((logits.argmax(-1) == targets).all()))


def score_options(
    reader: Reader, prompt: PreparedPrompt, options: Sequence[str], lead: str = ""
) -> list[float]:
    """Log-likelihood in nats of each option as the answer to ``prompt``, which is read once.

    Args:
        lead: words between the two, which are not scored.
    """
    tokens = [encode(reader.tokenizer, option) for option in options]
    first = reader.logits(prompt.working, begun(reader, prompt, lead).ids, 1)[0, 0].log_softmax(-1)
    scores = []
    for ids in tokens:
        score = float(first[ids[0]])
        if len(ids) > 1:
            rest = torch.tensor(ids, device=reader.device)
            logits = reader.logits(prompt.working.copy(), rest[None, :-1], len(ids) - 1)[0]
            score -= float(F.cross_entropy(logits, rest[1:], reduction="sum"))
        scores.append(score)
    return scores


def begun(reader: Reader, prompt: PreparedPrompt, lead: str) -> PreparedPrompt:
    """A prompt with the beginning of its answer."""
    return replace(prompt, ids=torch.cat((prompt.ids, reader.encode(lead, begins=False)), dim=1))
