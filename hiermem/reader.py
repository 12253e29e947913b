"""`Reader`: a backbone that reads token ids and texts over working memories, and generates after them.

`Reader.stream` alone cuts ids into chunks for the backbone; before it `reading` regroups a document's text by
chunks. Dimension names: B batch, N tokens of an input, V vocabulary.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiermem.backbone import Backbone
from hiermem.decoding import Continuation
from hiermem.errors import NonFiniteError
from hiermem.greedy import DraftedRow, TokenTaker, in_step
from hiermem.memory.hmt.module import HMTModule, SoftPrompt
from hiermem.memory.hmt.segments import SegmentRecurrence
from hiermem.memory.kv.prompt import KVPrompt
from hiermem.memory.policies import FullCachePolicy
from hiermem.memory.state_encoder import StateEncoder
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.padding import Block
from hiermem.prompts import PromptText
from hiermem.text import encode


@dataclass(frozen=True)
class Reader:
    """A backbone with its tokenizer and the parameters of the memories that it reads over.

    Attributes:
        adapter: the backbone.
        tokenizer: None where only token ids are read.
        chunk: most tokens that are read at once.
        segment: tokens of a segment.
        networks: what policies score with, by their names.
        summary: parameters of the memory embeddings; None where they are off.
        ends: tokens that end an answer.
        kv_prompt: what stands before recalled keys and values; None: the prompt's beginning is read.
        state_encoder: makes embeddings of sentences of the backbone's states; None: there is none.
    """

    adapter: Backbone
    tokenizer: Any
    chunk: int
    segment: int
    networks: Mapping[str, nn.Module]
    summary: HMTModule | None = None
    ends: frozenset[int] = frozenset()
    kv_prompt: KVPrompt | None = None
    state_encoder: StateEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        return self.adapter.model.device

    @property
    def num_embeddings(self) -> int:
        """Rows of the backbone's embedding matrix: token ids are smaller."""
        return int(self.adapter.model.get_input_embeddings().weight.shape[0])

    def new_working_memory(
        self,
        config: WorkingMemoryConfig,
        batch: int = 1,
        *,
        recurrent: bool = False,
        segment: int | None = None,
    ) -> WorkingMemory:
        """An empty working memory for this backbone.

        Args:
            recurrent: whether segments read memory embeddings of earlier ones, where there are any.
            segment: tokens of a segment; None: as configured.
        """
        recurrence = None
        if recurrent and self.summary is not None:
            recurrence = SegmentRecurrence(self.summary, segment or self.segment, batch, self.device)
        return self.adapter.new_memory(config, batch, self.networks.get(config.policy), recurrence)

    def encode(self, text: str | PromptText, *, begins: bool = True) -> Tensor:
        """Token ids ``[1, n]`` int64 of a text or prompt, on the backbone's device.

        Args:
            begins: whether nothing is read before it: it then begins as every text does.
        """
        if isinstance(text, str):
            ids = encode(self.tokenizer, text, begins=begins)
        else:
            ids = text.ids(self.tokenizer, begins=begins)
        return torch.tensor([ids], dtype=torch.int64, device=self.device)

    # ---- reading

    def stream(
        self,
        memory: WorkingMemory,
        ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        logits: range | None = None,
        layers: list[tuple[Tensor, ...]] | None = None,
    ) -> Iterator[Block]:
        """Read left-aligned texts chunk by chunk; ``memory`` moves on whenever the next block is asked for.

        Args:
            ids: ``[B, N]`` int64.
            lengths: tokens of each text, after which its row is padding; None: N.
            logits: columns whose logits are wanted; None: no logits but final hidden states, of all columns.
            layers: where to add what goes into and comes out of every layer, chunk by chunk.

        Yields:
            the logits of every chunk that has wanted columns, from the first of them to the chunk's end; or
            the states of every chunk.

        Raises:
            InputError: rows that recall by half a segment are at different places of their segments.
        """
        B, N = ids.shape
        lengths = [N] * B if lengths is None else lengths
        for at, take in _cuts(memory, lengths, self.chunk, N):
            valid = [min(max(length - at, 0), take) for length in lengths]
            first, count = at, 0
            if logits is not None:
                first = max(logits.start, at)
                count = max(at + take - first, 0) if at < logits.stop else 0
            read = partial(self.adapter.read_chunk, memory, ids[:, at : at + take], valid, count, layers)
            if logits is None or count:
                yield Block(first, read())  # no name here, which would keep it during the next chunk
            else:
                read()

    def read(
        self,
        memory: WorkingMemory,
        ids: Tensor,
        after_chunk: Callable[[int], object] | None = None,
        take_states: Callable[[tuple[Tensor, ...]], object] | None = None,
    ) -> Tensor:
        """Read ``ids [1, N]`` without computing logits; returns the last chunk's states ``[1, Q, width]``.

        Args:
            after_chunk: called with the number of its tokens after every chunk.
            take_states: called after every chunk with what went into and came out of every layer, ``[1, Q,
                width]`` each.

        Raises:
            NonFiniteError: the backbone produced NaN or infinity; the place is named.
        """
        layers: list[tuple[Tensor, ...]] | None = None if take_states is None else []
        for _, states in self.stream(memory, ids, layers=layers):
            if not states.isfinite().all():
                end = memory.num_tokens[0]
                raise NonFiniteError(
                    f"The backbone's states of tokens {end - states.shape[1]} to {end} are not finite: read "
                    f"with dtype float32, or leave that passage out."
                )
            if layers and take_states is not None:
                take_states(layers.pop())
            if after_chunk is not None:
                after_chunk(states.shape[1])
        return states

    def read_vectors(self, memory: WorkingMemory, ids: Tensor) -> Tensor:
        """Read ``ids [1, N]``; returns the vectors of the tokens (`StateEncoder`), ``[N, W]`` float32 on the
        CPU. The first token of a text, which all others look back at, has none: 0.

        Raises:
            NonFiniteError: as `read`.
        """
        begins = not memory.num_tokens[0]
        vectors = self._vectors(memory, ids)
        if begins:
            vectors[0] = 0.0
        return vectors

    def _vectors(self, memory: WorkingMemory, ids: Tensor) -> Tensor:
        encoder, found = self.state_encoder, list[Tensor]()
        assert encoder is not None

        def take(states: tuple[Tensor, ...]) -> None:
            found.append(encoder(encoder.chosen(states))[0].cpu())

        self.read(memory, ids, take_states=take)
        return torch.cat(found)

    @torch.no_grad()
    def sentence_embedding(self, text: str) -> Tensor:
        """Embedding of a question, read by itself, as sentences of a document have them, ``[W]``, on the
        CPU."""
        ids = self.encode(text)[:, : self.segment]
        whole = WorkingMemoryConfig(policy=FullCachePolicy.name, positions="absolute")
        vectors = self._vectors(self.new_working_memory(whole), ids)
        return F.normalize(vectors[min(len(vectors) - 1, 1) :].sum(0), dim=-1)

    def known_words(self, text: str) -> float:
        """Share of a text's words that are one token of the backbone's, with or without a space before, as
        they stand there or in small letters; from 0 to 1, 0 where there are none."""
        found = re.findall(r"\w+", text)
        forms = ({word, word.lower(), f" {word}", f" {word.lower()}"} for word in found)
        known = (any(len(encode(self.tokenizer, form)) == 1 for form in sorted(each)) for each in forms)
        return sum(known) / max(len(found), 1)

    def logits(self, memory: WorkingMemory, ids: Tensor, count: int | None = None) -> Tensor:
        """Float32 logits ``[B, count, V]`` of the last ``count`` columns of ``ids [B, N]``; None: of all."""
        N = ids.shape[1]
        columns = range(0 if count is None else N - count, N)
        return torch.cat([block for _, block in self.stream(memory, ids, logits=columns)], dim=1).float()

    # ---- text out of it

    def greedy(
        self,
        memory: WorkingMemory,
        ids: Tensor,
        rows: Sequence[TokenTaker],
        lengths: Sequence[int] | None = None,
    ) -> Iterator[None]:
        """Give each row the likeliest tokens after ``ids [B, N]``, one by one, as long as it wants any.

        ``memory`` moves on, and loses the rows that are done while others go on. A single row takes several
        tokens in a pass where it copies from what stands before (`hiermem.drafts`); of the last ones it took,
        ``memory`` may then have read none, and never more.

        Args:
            rows: of the batch.
            lengths: tokens of each row of ``ids``, at least 1, after which it is padding; None: N.

        Yields:
            after every token, nothing.

        Raises:
            NonFiniteError: the logits hold NaN.
        """
        if len(rows) == 1:
            ids = ids if lengths is None else ids[:, : lengths[0]]
            yield from DraftedRow(self, memory, ids, rows[0]).tokens()
        else:
            yield from in_step(self, memory, ids, rows, lengths)

    def continue_from(self, memory: WorkingMemory, ids: Tensor, limit: int) -> tuple[str, bool]:
        """The likeliest tokens after ``ids [1, N]`` as text, and whether they ended by themselves.

        The text is without special tokens; ``memory`` moves on. A phrase that comes again and again ends them
        and is kept once (`hiermem.decoding`).

        Args:
            limit: most tokens.

        Raises:
            NonFiniteError: the logits hold NaN.
        """
        row = Continuation(self.ends, limit)
        drafted = DraftedRow(self, memory, ids, row)
        for _ in drafted.tokens():
            pass
        drafted.settle()
        return str(self.tokenizer.decode(row.tokens, skip_special_tokens=True)), row.ended

    def summarise(self, text: str) -> Tensor:
        """Summary S ``[m, d]`` of a question (HMT section 3.1); one longer than a segment is cut."""
        assert self.summary is not None
        return self._summary(self.summary, self.summary.summary_prompt, text)

    def embed(self, text: str) -> Tensor:
        """Memory embeddings ``[m, d]`` of a text as of a document's first segment, positions without gaps;
        one longer than a segment is cut."""
        assert self.summary is not None
        return self._summary(self.summary, self.summary.first_prompt, text)

    def _summary(self, summary: HMTModule, prompt: SoftPrompt, text: str) -> Tensor:
        ids = self.encode(text)[:, : self.segment]
        return self.adapter.summary(summary, prompt, ids, [ids.shape[1]])[0]


def _cuts(memory: WorkingMemory, lengths: Sequence[int], size: int, width: int) -> Iterator[tuple[int, int]]:
    """First column and width of the chunks of left-aligned rows; they end where an eviction is due.

    Each must be read before the next is asked for.

    Args:
        lengths: tokens of each row.
        size: most tokens in a chunk.
        width: columns of the rows, padding included.
    """
    at = 0
    while at < width:
        active = [length > at for length in lengths]
        take = min(size, width - at, memory.room(active) if any(active) else width)
        if memory.recurrence is not None:
            memory.recurrence.check_begins([max(length - at, 0) for length in lengths], take)
        yield at, take
        at += take
