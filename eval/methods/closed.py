"""Nothing before the question: the floor of every comparison."""

from typing import ClassVar

from hiermem.asking import PreparedPrompt
from hiermem.eval.methods.base import Method, register_method
from hiermem.eval.methods.passages import fresh_prompt


@register_method
class Closed(Method[None]):
    """The bare backbone without the text: what it knows or guesses."""

    name: ClassVar[str] = "closed"

    def read(self, text: str) -> None:
        return None

    def prompt(self, context: None, question: str) -> PreparedPrompt:
        return fresh_prompt(self.model, [], question)
