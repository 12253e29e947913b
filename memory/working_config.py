"""Settings of the working memory."""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from hiermem.errors import InputError
from hiermem.memory.cache.frames import POSITION_MODES
from hiermem.memory.cache.head_groups import HeadBudgets
from hiermem.memory.policies import POLICIES, EvictionPolicy
from hiermem.settings import check_settings


@dataclass
class WorkingMemoryConfig:
    """Settings of the working memory.

    Attributes:
        policy: name of the eviction policy, one of `hiermem.memory.policies.POLICIES`, or an alias of one.
        budget: tokens that each KV head keeps after a decision, in the mean. Between decisions the cache
            grows by up to `update_interval` tokens more. The policies `full_cache` and
            `segment_local` make no use of it.
        sinks: first tokens of a document, never evicted.
        recent_share: share of a head's budget that always goes to the newest tokens.
        head_shares: what each KV head keeps in proportion to the others, layers x KV heads; None: all keep
            the same. They belong to one backbone (`hiermem calibrate` measures them).
        update_interval: tokens read between two decisions.
        positions: `distance` keeps true distances up to the trained range and holds older tokens at its
            far edge; `absolute` counts on for ever (as NAMM was published); `compact` closes the gaps
            (as StreamingLLM does).
        trained_range: positions the backbone was trained on; None asks the backbone's configuration.
        policy_settings: settings of the policy by name, those that differ from its own defaults.
    """

    policy: str = "window"
    budget: int = 512
    sinks: int = 4
    recent_share: float = 0.5
    update_interval: int = 512
    positions: str = "distance"
    trained_range: int | None = None
    head_shares: HeadBudgets | None = None
    policy_settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self)
        self.policy = POLICIES.canonical(self.policy)
        self.policy_settings = POLICIES.check(self.policy, self.policy_settings)
        if self.head_shares is not None:
            self.head_shares = [[float(share) for share in row] for row in self.head_shares]  # as JSON has it
            flat = [share for row in self.head_shares for share in row]
            if not flat or not all(0 <= share < float("inf") for share in flat) or not any(flat):
                raise InputError("Head shares must be finite, not negative and not all 0.")
        if self.positions not in POSITION_MODES:
            raise InputError(
                f"Unknown position mode {self.positions!r}: choose one of {', '.join(POSITION_MODES)}."
            )
        if self.budget < 1:
            raise InputError(f"The budget must be at least 1 token per KV head, not {self.budget}.")
        if self.trained_range is not None and self.trained_range < 1:
            raise InputError(f"The trained range must be at least 1 position, not {self.trained_range}.")
        if self.update_interval < 1:
            raise InputError(f"Decisions must be at least 1 token apart, not {self.update_interval}.")
        if self.sinks < 0 or not 0.0 <= self.recent_share <= 1.0:
            raise InputError(
                f"The sinks must not be negative and recent_share must lie in 0..1, "
                f"not {self.sinks} and {self.recent_share}."
            )
        if self.sinks + self.recent(self.budget) > self.budget:
            raise InputError(
                f"{self.sinks} sinks and {self.recent(self.budget)} recent tokens exceed the budget of "
                f"{self.budget}: raise the budget."
            )
        if self.policy_settings:
            self.new_policy()  # which refuses values

    def recent(self, budget: int) -> int:
        """Newest tokens that a head with this budget never loses."""
        return int(budget * self.recent_share)

    def new_policy(self, network: nn.Module | None = None) -> EvictionPolicy:
        """The configured policy with its settings.

        Args:
            network: what the policy scores with, if it has one; None: `namm` takes an untrained one of the
                published shape, `linear` scores nothing.
        """
        supplied = {} if network is None else {"network": network}
        return POLICIES.build(self.policy, self.policy_settings, sinks=self.sinks, **supplied)

    def with_policy(self, policy: str, **settings: Any) -> "WorkingMemoryConfig":
        """The same configuration with another policy and its settings; those of the present one go."""
        return replace(self, policy=policy, policy_settings=settings)
