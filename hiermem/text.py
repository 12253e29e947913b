"""Text that arrives in pieces, as the tokens that the whole text would give, with character spans."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from hiermem.errors import InputError
from hiermem.plain_text import PlainBackend, is_fast, require_fast

WINDOW = 1 << 16
"""Characters tokenised at a time."""

MARGIN = 512
"""Characters that are held back at the end of a window, and shown again before the next one: tokenisers
look no further than a word around a boundary."""


@dataclass(frozen=True)
class TokenBlock:
    """Consecutive tokens of a text.

    Attributes:
        ids: token ids.
        starts: character offset of each token in the whole text; a token reaches to the next one's start. One
            that begins within a character starts where the one before it does.
        text: the characters that the tokens cover.
    """

    ids: list[int]
    starts: list[int]
    text: str


def check_text(text: Any) -> None:
    """Refuse what tokenizers do not take."""
    if not isinstance(text, str):
        raise InputError(f"A document is made of text, not of {type(text).__name__}.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text is not valid Unicode at character {error.start}: repair its encoding first."
        ) from error


def encode(tokenizer: Any, text: str, *, begins: bool = False, template: Sequence[range] = ()) -> list[int]:
    """The token ids of ``text``, in which the names of control tokens are text as well (`PlainBackend`).

    A tokenizer that is not a fast one takes only the names of special tokens as text.

    Args:
        begins: whether nothing is read before: the beginning-of-sequence token comes first, where texts have
            one.
        template: ranges of characters whose names of control tokens are control tokens, in order, none of
            which reaches into the next; they need a fast tokenizer.
    """
    if template or is_fast(tokenizer):
        ids = PlainBackend(tokenizer).encode_template(text, template)
    else:
        encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        ids = list(encoded.input_ids)
    return from_beginning(tokenizer, ids) if begins else ids


def encode_with_spans(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """The same token ids with the character span of each, from a fast tokenizer."""
    return PlainBackend(tokenizer).encode(text)


def separated(before: str, text: str) -> str:
    """``text`` with a paragraph break in front, where the text ``before`` it does not end with one."""
    missing = 2 - min(len(before) - len(before.rstrip("\n")), 2) if before else 0
    return "\n" * missing + text


def beginning(tokenizer: Any) -> list[int]:
    """The beginning-of-sequence token where the tokenizer puts one before a text, else nothing."""
    first = PlainBackend(tokenizer).beginning if is_fast(tokenizer) else tokenizer("").input_ids[:1]
    return first if first and first[0] == tokenizer.bos_token_id else []


def from_beginning(tokenizer: Any, ids: list[int]) -> list[int]:
    """``ids`` with the beginning-of-sequence token, where texts have one and it is not there yet."""
    first = beginning(tokenizer)
    return ids if ids[: len(first)] == first else first + ids


def decoded(tokenizer: Any, ids: list[int], start: int = 0) -> TokenBlock:
    """Token ids as a block with the text that they stand for, which begins at character ``start``."""
    stream = DecodeStream(skip_special_tokens=False)
    starts: list[int] = []
    texts: list[str] = []
    waiting: list[int] = []  # tokens of a character that is not complete yet
    for token in ids:
        starts.append(start)
        waiting.append(token)
        text = stream.step(tokenizer.backend_tokenizer, token)
        if text is not None:
            texts.append(text)
            start, waiting = start + len(text), []
    if waiting:
        texts.append(tokenizer.decode(waiting, clean_up_tokenization_spaces=False))
    return TokenBlock(ids, starts, "".join(texts))


def token_spans(tokenizer: Any, ids: list[int], text: str, before: str = "", after: str = "") -> list[range]:
    """Characters of ``text`` that each of its tokens covers; those of one character all cover it.

    They are those of tokenising it again within the text around it. Where that gives other tokens, as of a
    document that was given as ids, they are what decoding tells. A beginning-of-sequence token covers none.

    Args:
        ids: the tokens of ``text`` as they were read.
        before: text that stands before it.
        after: text that stands behind it.
    """
    before, after = before[-MARGIN:], after[:MARGIN]
    first = beginning(tokenizer)
    skipped = len(first) if not before and ids[: len(first)] == first else 0
    own = ids[skipped:]
    again, spans = encode_with_spans(tokenizer, before + text + after)
    starts = [start - len(before) for start in _starts(spans)]
    at = next((i for i, start in enumerate(starts) if start >= 0), len(starts))
    while at < len(starts) and starts[at] == 0 and again[at : at + len(own)] != own:
        at += 1  # the text may begin within a character
    found = starts[at : at + len(own)]
    if again[at : at + len(own)] != own:
        block = decoded(tokenizer, own)
        scale = len(text) / max(len(block.text), 1)
        found = [round(start * scale) for start in block.starts]
    return [range(0)] * skipped + _to_the_next(found, len(text))


def _to_the_next(starts: Sequence[int], end: int) -> list[range]:
    """Spans from each start to the next greater one: tokens of one character share it."""
    found: list[range] = []
    for place in reversed(range(len(starts))):
        if place + 1 < len(starts) and starts[place + 1] > starts[place]:
            end = starts[place + 1]
        found.append(range(starts[place], end))
    return found[::-1]


def stream_tokens(
    tokenizer: Any, pieces: Iterable[str], offset: int = 0, context: str = ""
) -> Iterator[TokenBlock]:
    """Tokenise ``pieces`` as if they were one string, in memory bounded by the window.

    Args:
        tokenizer: a fast tokenizer (one that gives character offsets). No special tokens are added.
        offset: character offset of the first character in the document.
        context: characters right before it, which were read earlier.

    Raises:
        BackboneUnsupportedError: the tokenizer gives no character offsets.
        InputError: a piece is not text, or holds half of a surrogate pair.
    """
    require_fast(tokenizer)
    pending = ""
    for piece in pieces:
        check_text(piece)
        pending += piece
        while len(pending) >= WINDOW + MARGIN:
            ids, starts, cut = _tokenise(tokenizer, context, pending[: WINDOW + MARGIN], final=False)
            yield TokenBlock(ids, [offset + start for start in starts], pending[:cut])
            context, pending, offset = (context + pending[:cut])[-MARGIN:], pending[cut:], offset + cut
    if pending:
        ids, starts, _ = _tokenise(tokenizer, context, pending, final=True)
        yield TokenBlock(ids, [offset + start for start in starts], pending)


def _tokenise(tokenizer: Any, context: str, text: str, final: bool) -> tuple[list[int], list[int], int]:
    """Tokens of ``text`` after ``context``: ids, character starts within ``text``, and where they end."""
    ids, spans = encode_with_spans(tokenizer, context + text)
    first = _token_at(spans, len(context))
    if context and first < len(spans) and spans[first][0] < len(context):
        return _tokenise(tokenizer, "", text, final)  # a token would reach back into what has been read
    last = len(spans) if final else _last_boundary(context + text, spans, len(context) + len(text) - MARGIN)
    cut = len(text) if last == len(spans) else spans[last][0] - len(context)
    starts = [max(start - len(context), 0) for start in _starts(spans[first:last])]
    if starts:
        starts[0] = 0  # characters that the tokenizer dropped belong to the token after them
    return ids[first:last], starts, cut


def _starts(spans: list[tuple[int, int]]) -> list[int]:
    """Where each token starts; one that begins within a character, where the token before it does."""
    starts: list[int] = []
    for index, (start, _) in enumerate(spans):
        starts.append(starts[-1] if index and start < spans[index - 1][1] else start)
    return starts


def _token_at(spans: list[tuple[int, int]], position: int) -> int:
    """Index of the first token that ends after character ``position``."""
    return next((i for i, (_, end) in enumerate(spans) if end > position), len(spans)) if position else 0


def _last_boundary(text: str, spans: list[tuple[int, int]], limit: int) -> int:
    """Index of the last token before ``limit`` that may start a window: best one at the start of a word."""
    fallback = 0
    for index in range(len(spans) - 1, 0, -1):
        start, before = spans[index][0], spans[index - 1][1]
        if start > limit or start < before:  # inside a character that takes several tokens
            continue
        fallback = fallback or index
        if start < limit - MARGIN:
            break
        if text[start].isspace() and not text[start - 1].isspace():
            return index
    return fallback or len(spans)
