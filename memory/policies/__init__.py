"""Eviction policies: each one short file; this is the one place that lists them."""

from hiermem.memory.policies.attention import AttentionPolicy
from hiermem.memory.policies.base import CacheView, EvictionPolicy, Observer, Received, ShownQueries
from hiermem.memory.policies.forget import ForgetPolicy
from hiermem.memory.policies.namm import Namm, NammConfig, NammPolicy
from hiermem.memory.policies.none import NoPolicy
from hiermem.memory.policies.window import WindowPolicy

POLICIES: dict[str, type[EvictionPolicy]] = {
    policy.name: policy for policy in (NoPolicy, WindowPolicy, ForgetPolicy, AttentionPolicy, NammPolicy)
}

__all__ = [
    "POLICIES",
    "AttentionPolicy",
    "CacheView",
    "EvictionPolicy",
    "ForgetPolicy",
    "Namm",
    "NammConfig",
    "NammPolicy",
    "NoPolicy",
    "Observer",
    "Received",
    "ShownQueries",
    "WindowPolicy",
]
