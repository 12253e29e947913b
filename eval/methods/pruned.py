"""The text in the prompt, pruned before the question is seen."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from hiermem.errors import InputError
from hiermem.eval.methods.base import register_method
from hiermem.eval.methods.in_context import InContext, PrefilledContext, check_fits
from hiermem.memory.cache.head_groups import budget_that_keeps, kept_shares
from hiermem.memory.policies import FullCachePolicy, SegmentLocalPolicy
from hiermem.memory.working import WorkingMemory
from hiermem.memory.working_config import WorkingMemoryConfig

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.model import HierMemModel


@register_method
class Pruned(InContext):
    """As configured but for recall: pruned to the budget before the question is seen, a trained memory handed
    on around segments where the model has one.

    Args:
        keep: share of a prompt's tokens that a head keeps in the mean, in place of the configured budget.
    """

    name = "pruned"
    takes: ClassVar[tuple[str, ...]] = ("keep",)
    parts = ("working", "namm", "summary", "mamba", "asking")
    model_options = ("policy", "policy_set", "budget", "segment", "positions", "evictor")

    def __init__(self, model: "HierMemModel", keep: float | None = None) -> None:
        super().__init__(model)
        self.keep = keep

    def working(self, tokens: int) -> WorkingMemoryConfig:
        config = super().working(tokens)
        if self.keep is None:
            return config
        shares, kept = config.head_shares, max(round(self.keep * tokens), 1)
        shares = None if shares is None else kept_shares(shares, self.model.mamba.groups)
        return replace(config, budget=budget_that_keeps(shares, tokens, kept, config.sinks))

    def memory(self, tokens: int) -> WorkingMemory:
        return self.model.new_working_memory(self.working(tokens), recurrent=True)

    def read(self, text: str) -> PrefilledContext:
        prefill = super().read(text)
        prefill.working.evict()
        return prefill


@register_method
class Compressed(Pruned):
    """The same as libraries that compress a cache do it: all of a text is read, then a single decision is
    made."""

    name = "compressed"

    @classmethod
    def check(cls, config: "HierMemConfig", options: Mapping[str, Any]) -> None:
        """Refuse a compression without a share, a policy that scores nothing, and positions without gaps."""
        working = config.working
        if options.get("keep") is None:
            raise InputError(f"The method {cls.name} keeps a share of a text: give --keep.")
        scores_nothing = working.policy in (FullCachePolicy.name, SegmentLocalPolicy.name)
        if scores_nothing or working.positions == "compact":
            raise InputError(
                f"The method {cls.name} needs a policy that scores tokens where they stand, not "
                f"{working.policy} with the positions {working.positions}: choose another --policy or "
                f"--positions."
            )

    def working(self, tokens: int) -> WorkingMemoryConfig:
        return replace(super().working(tokens), update_interval=self.model.adapter.trained_range)

    def check_length(self, tokens: int) -> None:
        check_fits(tokens, self.model.adapter.trained_range)
