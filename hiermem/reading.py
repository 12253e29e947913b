"""The segment loop: a document goes through the backbone chunk by chunk and leaves a memory behind."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.longterm import Record
from hiermem.memory.state import MemoryState
from hiermem.text import MARGIN, TokenBlock, stream_tokens

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

Source = str | Tensor | Sequence[int] | Iterable[str]


@dataclass(frozen=True)
class Piece:
    """Tokens of one chunk with the characters they cover.

    Attributes:
        ids: token ids, at most one chunk of them.
        start: character offset of the first token in the document.
        text: the characters from there to the next chunk.
    """

    ids: list[int]
    start: int
    text: str


def read(model: "HierMemModel", source: Source, memory: MemoryState, progress: bool) -> None:
    """Read ``source`` into ``memory``; on any exception the memory stands at the last complete chunk."""
    from tqdm.auto import tqdm

    before, total = memory.tokens, len(source) if isinstance(source, str) else None
    bar = tqdm(
        total=total, unit="char", unit_scale=True, desc="reading", disable=None if progress else True, delay=2
    )
    with bar:
        blocks = _blocks(model.tokenizer, source, memory)
        for piece in _pieces(blocks, model.config.chunk, memory.segment, memory.tokens):
            moment = memory.snapshot()
            try:
                _read_piece(model, memory, piece)
            except BaseException:
                memory.restore(moment)
                raise
            bar.update(len(piece.text) if total is not None else 0)
            bar.set_postfix(tokens=memory.tokens, segments=memory.segments, refresh=False)
    if memory.tokens == before:
        raise InputError("The document is empty: give a text with at least one character.")


def _blocks(tokenizer: Any, source: Source, memory: MemoryState) -> Iterator[TokenBlock]:
    start = memory.characters
    if isinstance(source, Tensor) or (isinstance(source, Sequence) and source and isinstance(source[0], int)):
        yield _decoded(tokenizer, torch.as_tensor(source).flatten().tolist(), start)
        return
    pieces = [source] if isinstance(source, str) else cast(Iterable[str], source)
    blocks = stream_tokens(tokenizer, pieces, start, memory.last_characters(MARGIN))
    prefix = tokenizer("").input_ids if memory.tokens == 0 else []  # a beginning-of-sequence token, or none
    for block in blocks:
        if prefix:
            block = TokenBlock(prefix + block.ids, [start] * len(prefix) + block.starts, block.text)
            prefix = []
        yield block


def _decoded(tokenizer: Any, ids: list[int], start: int) -> TokenBlock:
    """Token ids as a block; its text is what they decode to, one by one."""
    texts = tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
    starts = []
    for text in texts:
        starts.append(start)
        start += len(text)
    return TokenBlock(ids, starts, "".join(texts))


def _pieces(blocks: Iterable[TokenBlock], chunk: int, segment: int, position: int) -> Iterator[Piece]:
    """Regroup a stream so that pieces end at multiples of ``chunk`` and of ``segment`` in the document."""
    ids: list[int] = []
    text, start = "", 0
    for block in blocks:
        if not block.ids:
            continue
        start = start if ids else block.starts[0]
        bounds = [*block.starts[1:], block.starts[0] + len(block.text)]
        at = 0
        while at < len(block.ids):
            take = min(chunk - position % chunk, segment - position % segment, len(block.ids) - at)
            origin = block.starts[0]
            ids += block.ids[at : at + take]
            text += block.text[block.starts[at] - origin : bounds[at + take - 1] - origin]
            position, at = position + take, at + take
            if position % chunk == 0 or position % segment == 0:
                yield Piece(ids, start, text)
                ids, start, text = [], bounds[at - 1], ""
    if ids:
        yield Piece(ids, start, text)


def _read_piece(model: "HierMemModel", memory: MemoryState, piece: Piece) -> None:
    first = memory.tokens
    segment = first // memory.segment
    hidden = model.read_ids(memory.working, torch.tensor([piece.ids], device=model.device))
    if not bool(hidden[:, -1].isfinite().all()):
        raise NonFiniteError(
            f"The backbone's state in segment {segment} (tokens {first} to {memory.tokens}) is not finite: "
            f"read with --dtype float32, or leave that passage out."
        )
    record = _extended(memory.longterm.open, piece, first)
    if memory.tokens % memory.segment == 0:
        memory.longterm.write([record])
    else:
        memory.longterm.open = record


def _extended(record: Record | None, piece: Piece, first: int) -> Record:
    ids, end = torch.tensor(piece.ids, dtype=torch.int32), piece.start + len(piece.text)
    if record is None:
        return Record(first, ids, piece.start, end, piece.text)
    return Record(
        record.first_token, torch.cat((record.ids, ids)), record.start, end, record.text + piece.text
    )
