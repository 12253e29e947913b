"""Passages recalled as what the model made of them: their keys and values, in front of a question."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.kv.recall import Chosen, Recalled, lead_of, recalled
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.records import SegmentRecord
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.passages import Source
from hiermem.prompts import around_passages
from hiermem.reader import Reader
from hiermem.text import decoded


def kv_tier(memory: MemoryState) -> KVTier:
    """The keys and values of a memory's segments.

    Raises:
        InputError: it was read without that tier.
    """
    tier = next((tier for tier in memory.tiers if isinstance(tier, KVTier)), None)
    if tier is None:
        raise InputError(
            "This memory keeps no keys and values: read the document with the tier kv, on the command line "
            "--set longterm.tiers.kv={}."
        )
    return tier


def recall_kv(
    reader: Reader,
    memory: MemoryState,
    chosen: Chosen,
    config: WorkingMemoryConfig | None = None,
    lead: Tensor | None = None,
) -> Recalled:
    """A working memory of its own that holds chosen tokens of segments; ``memory`` stays as it is.

    Args:
        chosen: by segment, a mask of its tokens, or None for all.
        config: settings of that working memory; None: those that the document was read with.
        lead: tokens that stand before them in place of the document's sinks, ``[1, n]`` int64; they are read.

    Raises:
        InputError: see `kv_tier` and `recalled`.
    """
    tier, first = kv_tier(memory), None
    if lead is not None:
        own = memory.working_config
        patient = replace(own, update_interval=max(own.update_interval, lead.shape[1] + 1))
        read = reader.new_working_memory(patient)
        reader.read(read, lead)
        first = lead_of(tier, read)
    working = reader.new_working_memory(config or memory.working_config)
    return recalled(tier, chosen, working, reader.adapter.model.dtype, reader.device, first)


def recall_passages(
    reader: Reader, memory: MemoryState, sources: Sequence[Source], question: str, instruction: str
) -> tuple[WorkingMemory, Tensor]:
    """The keys and values of passages behind the beginning of the prompt, and the tokens to be read behind.

    Where a prompt begins with nothing, the document's sinks stand before them. What lies in a segment that is
    not complete yet is among the tokens. All that is recalled stays: the working memory evicts nothing.

    Returns:
        the working memory, and ids ``[1, n]`` int64 on the model's device.

    Raises:
        InputError: the document was read without the tier kv.
    """
    tier, records, spans = kv_tier(memory), memory.records(), _spans(sources)
    complete, chosen = records[: len(tier)], {}
    for segment, record in enumerate(complete):
        within = [(start, end) for start, end in spans if start < record.end and record.start < end]
        if within:
            chosen[segment] = _tokens_of(reader, record, within)
    end = complete[-1].end if complete else 0
    open_texts = [source.text[max(end - source.start, 0) :].strip() for source in sources if source.end > end]
    before, behind = around_passages(reader.tokenizer, open_texts, question, instruction)
    lead = reader.encode(before)
    patient = replace(memory.working_config, policy="full_cache", policy_settings={}, head_shares=None)
    found = recall_kv(reader, memory, chosen, patient, lead if lead.shape[1] else None)
    return found.working, reader.encode(behind, begins=False)


def _spans(sources: Sequence[Source]) -> list[tuple[int, int]]:
    """Characters of the passages, without white space around."""
    return [
        (source.start + len(source.text) - len(source.text.lstrip()),
         source.start + len(source.text.rstrip())) for source in sources
    ]  # fmt: skip


def _tokens_of(reader: Reader, record: SegmentRecord, spans: Sequence[tuple[int, int]]) -> Tensor:
    """The tokens of a record of which a character lies in one of the spans, ``[n]`` bool."""
    block = decoded(reader.tokenizer, record.ids.tolist(), record.start)
    starts = torch.tensor(block.starts)
    ends = torch.cat((starts[1:], torch.tensor([record.end])))
    return torch.stack([(starts < end) & (ends > start) for start, end in spans]).any(0)
