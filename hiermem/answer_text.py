"""`AnswerText`: the text that an answer's tokens give while they come, and how much of it stays."""

import re
import time
from collections.abc import Collection
from typing import Any

from hiermem.decoding import Continuation
from hiermem.reranking import PREFIX
from hiermem.templates import without_thoughts

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # such tokens in a row are decoded together
_CLEANED = 4  # most characters that `clean_up_tokenization_spaces` replaces at once


class AnswerText:
    """An answer that is decoded token by token.

    Its text is without the thoughts that it begins with and without white space around. It ends where the
    model asks itself the next question.

    Args:
        tokenizer: the backbone's.
        ends: tokens that end an answer.
        limit: most tokens.

    Attributes:
        first_token: when the first token came, by `time.perf_counter`; None: none did.
    """

    def __init__(self, tokenizer: Any, ends: Collection[int], limit: int) -> None:
        self._tokenizer, self._continuation = tokenizer, Continuation(ends, limit)
        self._asks = False  # whether the next question has begun
        self.first_token: float | None = None

    @property
    def going(self) -> bool:
        """Whether it wants another token."""
        return self._continuation.going and not self._asks

    @property
    def complete(self) -> bool:
        """Whether it ended by itself, not at the limit or in a loop."""
        return self._continuation.ended or self._asks

    def add(self, token: int) -> None:
        """Take the next token."""
        self.first_token = self.first_token or time.perf_counter()
        self._continuation.add(token)
        self._asks = PREFIX in without_thoughts(self._tokenizer, self._decoded(self._continuation.tokens))

    @property
    def text(self) -> str:
        """All of it so far."""
        text = without_thoughts(self._tokenizer, self._decoded(self._continuation.tokens))
        return text.split(PREFIX)[0].strip()

    @property
    def settled(self) -> str:
        """The beginning of it that stays whatever tokens follow."""
        if not self.going:
            return self.text
        tokens = self._continuation.settled
        while tokens and self._is_open(tokens[-1]):
            tokens = tokens[:-1]
        text = self._decoded(tokens)
        text = text[:-_CLEANED] if self._tokenizer.clean_up_tokenization_spaces else text
        # Half of a character is decoded as U+FFFD.
        text = without_thoughts(self._tokenizer, text.rstrip("\ufffd"), begun=True)
        begun = [size for size in range(1, len(PREFIX)) if text.endswith(PREFIX[:size])]
        return text[: len(text) - max(begun, default=0)].strip()

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _is_open(self, token: int) -> bool:
        """Whether what follows may change the text of a token at the end: a byte, or what has no text and may
        stand behind one."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        return not name or token in self._tokenizer.all_special_ids or bool(_BYTE.fullmatch(name))
