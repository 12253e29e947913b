"""An answer of any method, with what it cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hiermem.answering import answered
from hiermem.eval.methods import Method
from hiermem.eval.metrics import COSTS
from hiermem.eval.scoring import begun, prefill
from hiermem.passages import Source
from hiermem.resources import now


@dataclass(frozen=True)
class Response:
    """A greedy answer.

    Attributes:
        sources: passages that the backbone was shown, best first.
        found: see `hiermem.answer.Answer`.
        prompt_tokens: tokens read after the question was asked.
        live_bytes: of keys, values and states when the answer begins.
        seconds: from the question to the beginning of its answer.
    """

    text: str
    sources: Sequence[Source]
    found: bool
    prompt_tokens: int
    live_bytes: int
    seconds: float

    def costs(self) -> dict[str, float]:
        """Costs of the answer, by name."""
        return dict(zip(COSTS, (self.prompt_tokens, self.live_bytes, self.seconds), strict=True))


def respond(method: Method[Any], context: Any, question: str, lead: str, max_new_tokens: int) -> Response:
    """Ask a text that a method has read.

    Args:
        lead: how the answer begins, which is not part of it.
    """
    reader = method.model.reader
    start = now(reader.device)
    prompt = begun(reader, method.prompt(context, question), lead)
    tokens = prompt.ids.shape[1]
    if prompt.answerable:
        prompt = prefill(reader, prompt)
    seconds, live = now(reader.device) - start, prompt.working.nbytes
    answer = answered(reader, prompt, max_new_tokens)
    return Response(answer.text, answer.sources, answer.found, tokens, live, seconds)
