"""The segment loop: a document, read by the backbone or only indexed, leaves a memory behind."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hiermem.documents import Document, open_document, warn_of_name
from hiermem.errors import InputError, NonFiniteError
from hiermem.memory.longterm import SegmentRecord
from hiermem.memory.state import MemoryState, Moment
from hiermem.memory.state_encoder import TokenVectors
from hiermem.progress import progress_bar
from hiermem.reader import Reader
from hiermem.resources import give_back_memory
from hiermem.text import MARGIN, TokenBlock, beginning, decoded, stream_tokens

GIVEN_BACK = 16
"""Chunks after which free memory between lasting records goes back to the system, if the processor reads."""

DocumentInput = str | os.PathLike[str] | Document | Tensor | np.ndarray | Sequence[int] | Iterable[str]


@dataclass(frozen=True)
class Piece:
    """Tokens of one chunk with the characters that they cover.

    Attributes:
        ids: token ids, at most one chunk of them.
        starts: character offset of each token in the document.
        text: the characters from there to the next chunk.
        whole: whether it ends between two characters; a character may take several tokens.
    """

    ids: list[int]
    starts: list[int]
    text: str
    whole: bool

    @property
    def start(self) -> int:
        """Character offset of the first token."""
        return self.starts[0]


def read(
    reader: Reader,
    source: DocumentInput,
    memory: MemoryState,
    progress: bool,
    checkpoint: Callable[[], None] | None = None,
    *,
    index: bool = False,
) -> None:
    """Read ``source`` into ``memory``; whatever stops it, the memory stands where reading can go on.

    Args:
        checkpoint: called after every chunk, when the memory holds all that was read.
        index: leave the backbone out: the working memory stays empty, and chunks are segments.

    Raises:
        InputError: ``source`` is empty or no text; or see `MemoryState.check_goes_on`.
        NonFiniteError: the backbone produced NaN or infinity.
    """
    memory.check_goes_on(index)
    if isinstance(source, os.PathLike):
        source = open_document(source)
    if isinstance(source, Document):
        memory.places = memory.places.then(source.places, memory.characters)
        source = source.text
    elif isinstance(source, str):
        warn_of_name(source)
    before, total = memory.tokens, len(source) if isinstance(source, str) else None
    blocks, moment = _blocks(reader.tokenizer, source, memory), memory.moment
    chunk = memory.segment if index else reader.chunk
    with progress_bar("indexing" if index else "reading", total, "char", progress) as bar:
        for number, piece in enumerate(_pieces(blocks, chunk, memory.segment, before), 1):
            moment = _after(moment, piece, memory.segment, None if index else reader)
            bar.update(len(piece.text) if total is not None else 0)
            bar.set_postfix(tokens=moment.tokens, segments=len(moment.longterm), refresh=False)
            if piece.whole:
                memory.moment = moment
                if checkpoint is not None:
                    checkpoint()
            if not number % GIVEN_BACK and reader.device.type == "cpu":
                give_back_memory()
    if memory.tokens == before:
        raise InputError("The document is empty: give a text with at least one character.")


def _blocks(tokenizer: Any, source: DocumentInput, memory: MemoryState) -> Iterator[TokenBlock]:
    start = memory.characters
    ids = _token_ids(source)
    if ids is not None:
        if ids and not 0 <= min(ids) <= max(ids) < len(tokenizer):
            raise InputError(f"The token ids do not fit the tokenizer, which has {len(tokenizer)} tokens.")
        yield decoded(tokenizer, ids, start)
        return
    if not isinstance(source, Iterable) or isinstance(source, bytes | bytearray):
        raise InputError(f"A document is text, pieces of text or token ids, not {type(source).__name__}.")
    pieces = [source] if isinstance(source, str) else cast(Iterable[str], source)
    blocks = stream_tokens(tokenizer, pieces, start, memory.last_characters(MARGIN))
    prefix = beginning(tokenizer) if memory.tokens == 0 else []
    for block in blocks:
        if prefix:
            block = TokenBlock(prefix + block.ids, [start] * len(prefix) + block.starts, block.text)
            prefix = []
        yield block


def _token_ids(source: DocumentInput) -> list[int] | None:
    """The ids of a document given as token ids, else None."""
    if isinstance(source, Tensor | np.ndarray):
        if source.ndim > 1 and source.shape[0] != 1:
            raise InputError(f"One document is read at a time: the token ids have {source.shape[0]} rows.")
        return source.flatten().tolist()
    if isinstance(source, bytes | bytearray):
        return None
    if isinstance(source, Sequence) and len(source) and isinstance(source[0], int | np.integer):
        return [int(i) for i in cast(Sequence[int], source)]
    return None


def _pieces(blocks: Iterable[TokenBlock], chunk: int, segment: int, position: int) -> Iterator[Piece]:
    """Regroup a stream so that pieces end at multiples of ``chunk`` and of ``segment`` in the document."""
    ids: list[int] = []
    starts: list[int] = []
    text = ""
    for block in blocks:
        if not block.ids:
            continue
        origin, at = block.starts[0], 0
        bounds = [*block.starts[1:], origin + len(block.text)]
        while at < len(block.ids):
            take = min(chunk - position % chunk, segment - position % segment, len(block.ids) - at)
            ids += block.ids[at : at + take]
            starts += block.starts[at : at + take]
            text += block.text[block.starts[at] - origin : bounds[at + take - 1] - origin]
            position, at = position + take, at + take
            if position % chunk == 0 or position % segment == 0:
                yield Piece(ids, starts, text, whole=block.starts[at - 1] < bounds[at - 1])
                ids, starts, text = [], [], ""
    if ids:
        yield Piece(ids, starts, text, whole=True)


def _after(moment: Moment, piece: Piece, segment: int, reader: Reader | None) -> Moment:
    """The content of the memories after one more piece; ``moment`` stays as it is.

    Args:
        reader: what reads the piece; None: nobody does.
    """
    first, moment = moment.tokens, moment.copy()
    vectors = None if reader is None else _read_piece(reader, moment, piece, first // segment)
    record = _extended(moment.longterm.partial, piece, first, vectors)
    if len(record.ids) == segment:
        record.embedding = _embedding(moment)
        moment.write(record)
    else:
        moment.longterm.partial = record
    return moment


def _read_piece(reader: Reader, moment: Moment, piece: Piece, segment: int) -> TokenVectors | None:
    """Read a piece of the segment of that number; vectors of its tokens, where a search key wants them."""
    ids = torch.tensor([piece.ids], device=reader.device)
    try:
        if moment.longterm.reads_states:
            ends = torch.tensor([*piece.starts[1:], piece.start + len(piece.text)])
            return TokenVectors(ends, reader.read_vectors(moment.working, ids))
        reader.read(moment.working, ids)
    except NonFiniteError as error:
        raise NonFiniteError(f"Segment {segment} cannot be read. {error}") from error
    return None


def _extended(
    record: SegmentRecord | None, piece: Piece, first: int, vectors: TokenVectors | None
) -> SegmentRecord:
    """The partial record, if there is one, with the piece."""
    ids, end = torch.tensor(piece.ids, dtype=torch.int32), piece.start + len(piece.text)
    if record is None:
        found = SegmentRecord(first, ids, piece.start, end, piece.text)
    else:
        ids, text = torch.cat((record.ids, ids)), record.text + piece.text
        found = SegmentRecord(record.first_token, ids, record.start, end, text)
        if vectors is not None and record.token_vectors is not None:
            vectors = record.token_vectors.with_next(vectors)
    found.token_vectors = vectors
    return found


def _embedding(moment: Moment) -> Tensor | None:
    """Memory embeddings of the segment that has just ended, on the CPU; None where none are made."""
    recurrence = moment.working.recurrence
    if recurrence is None or not recurrence.suffix:
        return None
    (left,) = recurrence.memory_embeddings
    assert left is not None
    embedding = left[-1].cpu()
    if not embedding.isfinite().all():
        raise NonFiniteError(
            f"The memory embedding of segment {len(moment.longterm)} is not finite: read with dtype float32."
        )
    return embedding
