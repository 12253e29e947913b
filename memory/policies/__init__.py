"""Eviction policies: each one short file; this is the one place that lists them.

`register_policy` adds one from outside.
"""

from hiermem.memory.policies.attention import AttentionPolicy
from hiermem.memory.policies.base import AttentionStats, CacheStats, EvictionPolicy, ObservedQueries, Observer
from hiermem.memory.policies.full_cache import FullCachePolicy
from hiermem.memory.policies.h2o import H2OPolicy
from hiermem.memory.policies.l2_norm import L2NormPolicy
from hiermem.memory.policies.linear import LinearPolicy, LinearScorer
from hiermem.memory.policies.namm import Namm, NammConfig, NammPolicy
from hiermem.memory.policies.segment_local import SegmentLocalPolicy
from hiermem.memory.policies.window import WindowPolicy
from hiermem.registry import Registry

POLICIES: Registry[EvictionPolicy] = Registry("policy", EvictionPolicy)
register_policy = POLICIES.register

register_policy(FullCachePolicy)
register_policy(WindowPolicy)
register_policy(SegmentLocalPolicy)
register_policy(AttentionPolicy)
register_policy(H2OPolicy)
register_policy(L2NormPolicy)
register_policy(NammPolicy)
register_policy(LinearPolicy)

__all__ = [
    "POLICIES",
    "AttentionPolicy",
    "AttentionStats",
    "CacheStats",
    "EvictionPolicy",
    "FullCachePolicy",
    "H2OPolicy",
    "L2NormPolicy",
    "LinearPolicy",
    "LinearScorer",
    "Namm",
    "NammConfig",
    "NammPolicy",
    "ObservedQueries",
    "Observer",
    "SegmentLocalPolicy",
    "WindowPolicy",
    "register_policy",
]
