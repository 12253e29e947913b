"""A tokenizer's backend for which text is text, whatever names of control tokens it holds.

transformers sets in the backend, before each of its calls, whether such names are text: threads that share a
tokenizer change it for each other, and names of added tokens that are not special are never text. So each use
makes a backend of its own, in microseconds: it shares the model and the steps of the tokenizer's, and of its
added tokens it knows white space only.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer

from hiermem.errors import BackboneUnsupportedError


def is_fast(tokenizer: Any) -> bool:
    """Whether a tokenizer has a backend, and with it character offsets."""
    return bool(getattr(tokenizer, "is_fast", False))


def require_fast(tokenizer: Any) -> None:
    """Refuse a tokenizer that gives no character offsets."""
    if not is_fast(tokenizer):
        raise BackboneUnsupportedError(
            f"{type(tokenizer).__name__} gives no character offsets, which sources need: use a fast tokenizer"
        )


class PlainBackend:
    """The backend of a fast tokenizer as it is now, without its control tokens.

    Control tokens are all added tokens but white space, `special` or not. A vocabulary may hold the name of a
    special one as an ordinary piece too, as Unigram vocabularies do: it is then made of the name's single
    characters. Names of other added tokens, and of the unknown token, are what the model makes of them.

    Raises:
        BackboneUnsupportedError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any) -> None:
        require_fast(tokenizer)
        backend = tokenizer.backend_tokenizer
        self._core = Tokenizer(backend.model)
        for step in ("normalizer", "pre_tokenizer", "post_processor"):
            if (value := getattr(backend, step)) is not None:
                setattr(self._core, step, value)
        self._ids: dict[str, int] = {}  # of what is added here, in the tokenizer's numbers
        self._control: dict[str, tuple[int, AddedToken]] = {}
        for index, token in backend.get_added_tokens_decoder().items():
            if _is_space(token):
                self._add(token, index)
            else:
                self._control[token.content] = index, token
        special = {name for name, (_, token) in self._control.items() if token.special}
        self._names = special - {getattr(backend.model, "unk_token", None)}

    @property
    def beginning(self) -> list[int]:
        """The first token that the tokenizer makes of no text, if any."""
        return list(self._core.encode("", add_special_tokens=True).ids[:1])

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The tokens of a text and the character span of each."""
        (encoding,) = self._core.encode_batch([text], add_special_tokens=False)
        found = set(encoding.tokens) & (self._ids.keys() | self._names)
        if not found:
            return encoding.ids, encoding.offsets
        pieces = {token: self._pieces(token) for token in found}
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for token, index, span in zip(encoding.tokens, encoding.ids, encoding.offsets, strict=True):
            instead = pieces.get(token, [index])
            ids += instead
            spans += [span] * len(instead)
        return ids, spans

    def encode_template(self, text: str, template: Iterable[range]) -> list[int]:
        """The tokens of a text, in which control tokens are those whose names stand within these ranges.

        Args:
            template: ranges of characters, in order, none of which reaches into the next.
        """
        parts, done = [], 0
        for place in template:
            pattern = self._pattern(text[place.start : place.stop])
            for found in pattern.finditer(text, place.start, place.stop) if pattern else ():
                parts += [text[done : found.start()], self._mark(found.group())]
                done = found.end()
        return self.encode("".join([*parts, text[done:]]))[0]

    def _pattern(self, piece: str) -> re.Pattern[str] | None:
        """A pattern that finds the control tokens of a piece of a template: at each place the longest."""
        names = sorted((name for name in self._control if name in piece), key=len, reverse=True)
        words = [(re.escape(name), self._control[name][1].single_word) for name in names]
        alone = [rf"(?<!\w){word}(?!\w)" if single else word for word, single in words]
        return re.compile("|".join(alone)) if alone else None

    def _mark(self, name: str) -> str:
        """A string that no text holds, which becomes the control token of this name."""
        index, token = self._control[name]
        mark = f"x{secrets.token_hex(16)};"  # its first letter stands nowhere else in it
        self._add(AddedToken(mark, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False), index)
        return mark

    def _add(self, token: AddedToken, index: int) -> None:
        self._core.add_tokens([token])
        self._ids[token.content] = index

    def _pieces(self, token: str) -> list[int]:
        if token in self._ids:
            return [self._ids[token]]
        return [piece.id for character in token for piece in self._core.model.tokenize(character)]


def _is_space(token: AddedToken) -> bool:
    """Whether an added token is white space that stands for itself; SentencePiece writes it ``▁``."""
    return not token.special and token.content.replace("▁", " ").isspace()
