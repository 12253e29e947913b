"""Candidates of a generation as rows of one batch, each of which prunes the same reading its way.

Dimension names: C candidates, L layers, G KV heads, T cached tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hiermem.memory.cache.head_groups import head_budgets
from hiermem.memory.cache.kv_cache import best_first
from hiermem.memory.policies import CacheStats, EvictionPolicy, Namm, NammPolicy
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig


@dataclass(frozen=True)
class Candidate:
    """A candidate: head shares and a network to prune by.

    Attributes:
        shares: of the budget, layers x KV heads.
        network: scores tokens.
    """

    shares: list[list[float]]
    network: Namm


@dataclass(frozen=True)
class PopulationPolicy(EvictionPolicy):
    """Every row of a batch keeps what another candidate says.

    Attributes:
        networks: of each row.
        budgets: tokens that each head of each layer keeps, ``[C, L, G]`` int64.
        newest: of these the newest ones that are never evicted, as `budgets`.
    """

    networks: Sequence[Namm] = ()
    budgets: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.int64))
    newest: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.int64))

    name: ClassVar[str] = "population"

    def __post_init__(self) -> None:
        """Nothing to check: it is made by `of`, never of settings."""

    @classmethod
    def of(cls, candidates: Sequence[Candidate], config: WorkingMemoryConfig) -> "PopulationPolicy":
        """That of candidates that share the budget of a configuration out."""
        budgets = torch.tensor([head_budgets(c.shares, config.budget, config.sinks) for c in candidates])
        newest = torch.tensor([max(config.recent(budget), 1) for budget in budgets.flatten().tolist()])
        networks = [candidate.network for candidate in candidates]
        return cls(sinks=config.sinks, networks=networks, budgets=budgets, newest=newest.view_as(budgets))

    @property
    def drops(self) -> bool:
        return True

    def scores(self, stats: CacheStats) -> Tensor:
        """Those of each row's network; what is not among the best within its head's budget goes."""
        positions, device = stats.positions, stats.positions.device
        scores = torch.cat([self._of_row(stats, row) for row in range(len(self.networks))])
        newest = self.newest[:, stats.layer, :, None].to(device)
        protected = (positions < self.sinks) | (positions >= stats.num_tokens - newest)
        order = best_first(scores.masked_fill(protected, torch.inf).masked_fill(positions < 0, -torch.inf))
        places = torch.arange(order.shape[-1], device=device).expand_as(order)
        rank = torch.empty_like(order).scatter_(-1, order, places)
        return scores.masked_fill(rank >= self.budgets[:, stats.layer, :, None].to(device), -torch.inf)

    def _of_row(self, stats: CacheStats, row: int) -> Tensor:
        """Scores of a row's network, ``[1, G, T]`` float32, at -inf only what that drops."""
        part, policy = slice(row, row + 1), NammPolicy(self.sinks, self.networks[row])
        state = {name: tensor[part] for name, tensor in stats.state.items()}
        own = CacheStats(stats.positions[part], stats.num_tokens[part], state, stats.ragged)
        scores = policy.every_score(own)
        return scores if policy.drops else scores.clamp(min=torch.finfo(scores.dtype).min)


def pruned_by_each(
    whole: WorkingMemory, candidates: Sequence[Candidate], config: WorkingMemoryConfig
) -> WorkingMemory:
    """A row for each candidate with what it keeps of one document; ``whole`` stays as it is.

    Args:
        whole: a memory of one row, in which all heads of a layer share a cache and none was evicted.
        config: budget and protected tokens.
    """
    policy = PopulationPolicy.of(candidates, config)
    longest = replace(config, budget=max(whole.num_tokens[0], 1), head_shares=None, recent_share=0.0)
    memory = WorkingMemory(longest, whole.geometries, whole.trained_range, len(candidates), policy)
    memory.cache.layers = [
        cache.of_tokens(lambda tensor: tensor.expand(len(candidates), *tensor.shape[1:]))
        for cache in whole.caches
    ]
    memory.frames = whole.frames.select_rows([0] * len(candidates))
    memory.evict()
    return memory


def kept_tokens(memory: WorkingMemory) -> np.ndarray:
    """Tokens that a KV head holds in the mean over layers and heads, of each row, ``[C]`` float64."""
    held = [(cache.positions >= 0).sum(-1) for cache in memory.caches if cache.positions is not None]
    return torch.cat(held, dim=1).double().mean(1).cpu().numpy()
