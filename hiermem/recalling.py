"""Passages recalled as what the model made of them: their keys and values, in front of a question."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hiermem.asked_memory import AskedMemory
from hiermem.errors import InputError
from hiermem.memory.kv.prompt import Lead
from hiermem.memory.kv.recall import Chosen, Recalled, lead_of, recalled
from hiermem.memory.kv.store import banks_of
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.policies import FullCachePolicy
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.passages import Source
from hiermem.prompts import PromptText, around_passages
from hiermem.reader import Reader
from hiermem.text import token_spans


def kv_tier(memory: AskedMemory) -> KVTier:
    """The keys and values of a memory's segments.

    Raises:
        InputError: it was read without that tier.
    """
    tier = next((tier for tier in memory.tiers if isinstance(tier, KVTier)), None)
    if tier is None:
        raise no_kv_tier()
    return tier


def no_kv_tier() -> InputError:
    """There are no keys and values that passages could stand there as."""
    return InputError(
        "This memory keeps no keys and values: read the document with the tier kv, on the command line "
        "--set longterm.tiers.kv.keep=1."
    )


def recall_kv(
    reader: Reader,
    memory: AskedMemory,
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
    undecided = replace(config, update_interval=max(config.update_interval, ids.shape[1] + 1))
    working = reader.new_working_memory(undecided)
    reader.read(working, ids)
    return lead_of(working, banks_of(working.cache))


def recall_passages(
    reader: Reader, memory: AskedMemory, sources: Sequence[Source], question: str, instruction: str
) -> tuple[WorkingMemory, Tensor] | None:
    """The keys and values of passages behind the beginning of the prompt, and the tokens to be read behind.

    The beginning is the model's trained one, else it is read; where it is nothing, the document's sinks stand
    before the passages. What lies in a segment that is not complete yet is among the tokens. All that is
    recalled stays: the working memory evicts nothing.

    Returns:
        the working memory, and ids ``[1, n]`` int64 on the model's device; None: no segment is complete that
        a passage lies in.

    Raises:
        InputError: the document was read without the tier kv, or the prompt was never trained.
    """
    tier = kv_tier(memory)
    chosen = chosen_tokens(reader, memory, tier, sources)
    if not chosen:
        return None
    end = memory.records()[len(tier) - 1].end
    rest = (source.text[max(end - source.start, 0) :].strip() for source in sources if source.end > end)
    before, behind = around_passages(reader.tokenizer, [*filter(None, rest)], question, instruction)
    config = memory.working_config
    with torch.no_grad():
        lead = _lead(reader, tier, config, before)
        found = recall_kv(reader, memory, chosen, holding_all(config), lead)
    return found.working, reader.encode(behind, begins=False)


def _lead(reader: Reader, tier: KVTier, config: WorkingMemoryConfig, before: PromptText) -> Lead | None:
    """The trained beginning of a prompt, or that beginning as it is read; None: it is nothing."""
    if reader.kv_prompt is not None:
        if not reader.kv_prompt.is_set:
            raise InputError(
                "The model's prompt of keys and values was never trained: train it with the recipe kv, or "
                "set kv_prompt.tokens to 0."
            )
        return reader.kv_prompt.lead(tier.banks)
    ids = reader.encode(before)
    return read_lead(reader, ids, config) if ids.shape[1] else None


def holding_all(config: WorkingMemoryConfig) -> WorkingMemoryConfig:
    """The same settings, but nothing is evicted, so that positions may need to be held within the trained
    range where they were without gaps."""
    positions = "distance" if config.positions == "compact" else config.positions
    kept = config.with_policy(FullCachePolicy.name)
    return replace(kept, head_shares=None, positions=positions)


def chosen_tokens(reader: Reader, memory: AskedMemory, tier: KVTier, sources: Sequence[Source]) -> Chosen:
    """The tokens of passages, as far as they lie in segments that ``tier`` has keys and values of."""
    records, chosen = memory.records(), {}
    for segment, record in enumerate(records[: len(tier)]):
        spans = [span for span in map(_span, sources) if span.start < record.end and record.start < span.stop]
        if spans:
            around = (records[at].text if 0 <= at < len(records) else "" for at in (segment - 1, segment + 1))
            own = token_spans(reader.tokenizer, record.ids.tolist(), record.text, *around)
            tokens = torch.tensor([[record.start + one.start, record.start + one.stop] for one in own])
            limits = torch.tensor([[span.start, span.stop] for span in spans])
            within = (tokens[:, :1] < limits[:, 1]) & (limits[:, 0] < tokens[:, 1:])
            chosen[segment] = within.any(1) & (tokens[:, 0] < tokens[:, 1])
    return chosen


def _span(source: Source) -> range:
    """Characters of a passage, without white space around."""
    start = source.start + len(source.text) - len(source.text.lstrip())
    return range(start, source.start + len(source.text.rstrip()))
