"""Passages recalled as what the model made of them: their keys and values, in front of a question."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.kv.prompt import Lead
from hiermem.memory.kv.recall import Chosen, Recalled, lead_of, recalled
from hiermem.memory.kv.store import banks_of
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.records import SegmentRecord
from hiermem.memory.state import MemoryState
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.passages import Source
from hiermem.prompts import around_passages
from hiermem.reader import Reader
from hiermem.text import decoded


def recalls_kv(reader: Reader, memory: MemoryState, form: str) -> bool:
    """Whether passages stand before a question as keys and values.

    Args:
        form: as `AskConfig.passages` has it.
    """
    if form != "auto":
        return form == "kv"
    tier = _kv_tier(memory)
    return tier is not None and tier.keep == 1.0 and reader.kv_prompt is not None


def _kv_tier(memory: MemoryState) -> KVTier | None:
    return next((tier for tier in memory.tiers if isinstance(tier, KVTier)), None)


def kv_tier(memory: MemoryState) -> KVTier:
    """The keys and values of a memory's segments.

    Raises:
        InputError: it was read without that tier.
    """
    if (tier := _kv_tier(memory)) is None:
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
    lead: Lead | None = None,
) -> Recalled:
    """A working memory of its own that holds chosen tokens of segments; ``memory`` stays as it is.

    Args:
        chosen: by segment, a mask of its tokens, or None for all.
        config: settings of that working memory; None: those that the document was read with.
        lead: what stands before them in place of the document's sinks.

    Raises:
        InputError: see `kv_tier` and `recalled`.
    """
    working = reader.new_working_memory(config or memory.working_config)
    return recalled(kv_tier(memory), chosen, working, reader.adapter.model.dtype, reader.device, lead)


def read_lead(reader: Reader, ids: Tensor, config: WorkingMemoryConfig) -> Lead:
    """Tokens ``[1, n]`` int64, read by themselves, as what stands before recalled keys and values.

    Args:
        config: settings that the document was read with.
    """
    patient = replace(config, update_interval=max(config.update_interval, ids.shape[1] + 1))
    working = reader.new_working_memory(patient)
    reader.read(working, ids)
    return lead_of(working, banks_of(working.cache))


def recall_passages(
    reader: Reader, memory: MemoryState, sources: Sequence[Source], question: str, instruction: str
) -> tuple[WorkingMemory, Tensor]:
    """The keys and values of passages behind the beginning of the prompt, and the tokens to be read behind.

    The beginning is the model's trained one, else it is read; where it is nothing, the document's sinks stand
    before the passages. What lies in a segment that is not complete yet is among the tokens. All that is
    recalled stays: the working memory evicts nothing.

    Returns:
        the working memory, and ids ``[1, n]`` int64 on the model's device.

    Raises:
        InputError: the document was read without the tier kv.
    """
    tier = kv_tier(memory)
    complete = memory.records()[: len(tier)]
    end = complete[-1].end if complete else 0
    open_texts = [source.text[max(end - source.start, 0) :].strip() for source in sources if source.end > end]
    before, behind = around_passages(reader.tokenizer, open_texts, question, instruction)
    lead = None
    if reader.kv_prompt is not None:
        lead = reader.kv_prompt.lead(tier.banks)
    elif (ids := reader.encode(before)).shape[1]:
        lead = read_lead(reader, ids, memory.working_config)
    patient = replace(memory.working_config, policy="full_cache", policy_settings={}, head_shares=None)
    found = recall_kv(reader, memory, chosen_tokens(reader, memory, sources), patient, lead)
    return found.working, reader.encode(behind, begins=False)


def chosen_tokens(reader: Reader, memory: MemoryState, sources: Sequence[Source]) -> Chosen:
    """The tokens of passages, as far as they lie in segments of which the tier kv has keys and values."""
    spans, chosen = _spans(sources), {}
    for segment, record in enumerate(memory.records()[: len(kv_tier(memory))]):
        within = [(start, end) for start, end in spans if start < record.end and record.start < end]
        if within:
            chosen[segment] = _tokens_of(reader, record, within)
    return chosen


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
