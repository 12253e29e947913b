"""Control tokens of a chat template, found again in the texts that lm-evaluation-harness makes of it."""

import hashlib
from collections.abc import Sequence

from hiermem.errors import InputError

MOST = 1 << 18
"""Prompts that are known at a time: the harness makes those of all its tasks before it asks about any."""


class WrittenPrompts:
    """Where chat prompts are the template's. Of a prompt, a digest is kept and its ranges, not the text.

    The harness adds text after a prompt, and takes away white space at its end.
    """

    def __init__(self) -> None:
        self._templates: dict[bytes, tuple[range, ...]] = {}
        self._lengths: set[int] = set()

    def add(self, prompt: str, template: Sequence[range]) -> None:
        """Keep which ranges of a prompt the template wrote.

        Raises:
            InputError: there are too many.
        """
        begun = prompt.rstrip()
        self._templates[_digest(begun)] = tuple(template)
        self._lengths.add(len(begun))
        if len(self._templates) > MOST:
            raise InputError(f"The tasks have more than {MOST} chat prompts: run them in several commands.")

    def template_of(self, text: str) -> tuple[range, ...]:
        """The ranges of the longest prompt that ``text`` begins with; none if it begins with none."""
        for length in sorted((n for n in self._lengths if n <= len(text)), reverse=True):
            if (template := self._templates.get(_digest(text[:length]))) is not None:
                return template
        return ()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
