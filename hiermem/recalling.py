"""Segments recalled as what the model made of them: their keys and values, in front of a question."""

from hiermem.errors import InputError
from hiermem.memory.kv.recall import Chosen, Recalled, recalled
from hiermem.memory.kv.tier import KVTier
from hiermem.memory.state import MemoryState
from hiermem.memory.working_config import WorkingMemoryConfig
from hiermem.reader import Reader


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
    reader: Reader, memory: MemoryState, chosen: Chosen, config: WorkingMemoryConfig | None = None
) -> Recalled:
    """A working memory of its own that holds chosen tokens of segments; ``memory`` stays as it is.

    Args:
        chosen: by segment, a mask of its tokens, or None for all.
        config: settings of that working memory; None: those that the document was read with.

    Raises:
        InputError: see `kv_tier` and `recalled`.
    """
    working = reader.new_working_memory(config or memory.working_config)
    return recalled(kv_tier(memory), chosen, working, reader.adapter.model.dtype, reader.device)
