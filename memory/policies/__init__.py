"""Eviction policies: each one short file; this is the one place that lists them."""

from hiermem.memory.policies.attention import AttentionPolicy
from hiermem.memory.policies.base import AttentionStats, CacheStats, EvictionPolicy, ObservedQueries, Observer
from hiermem.memory.policies.full_cache import FullCachePolicy
from hiermem.memory.policies.namm import Namm, NammConfig, NammPolicy
from hiermem.memory.policies.segment_local import SegmentLocalPolicy
from hiermem.memory.policies.window import WindowPolicy

POLICIES: dict[str, type[EvictionPolicy]] = {
    policy.name: policy
    for policy in (FullCachePolicy, WindowPolicy, SegmentLocalPolicy, AttentionPolicy, NammPolicy)
}

__all__ = [
    "POLICIES",
    "AttentionPolicy",
    "AttentionStats",
    "CacheStats",
    "EvictionPolicy",
    "FullCachePolicy",
    "Namm",
    "NammConfig",
    "NammPolicy",
    "ObservedQueries",
    "Observer",
    "SegmentLocalPolicy",
    "WindowPolicy",
]
