"""Keep the keys with the smallest L2 norm (Devoto et al., arXiv 2406.11430).

A small norm goes with much attention, so nothing needs to be observed. As published but for two things: every
layer is pruned, where the first two are left whole there; and sinks and recent tokens are protected, as with
every policy here. A rotation leaves a norm as it is, so keys are taken as they are cached. It has little to
choose by where a backbone normalises its keys (Qwen 3, Gemma 3).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hiermem.errors import InputError
from hiermem.memory.policies.base import CacheStats, EvictionPolicy


@dataclass(frozen=True)
class L2NormPolicy(EvictionPolicy):
    """Smaller keys are better."""

    name: ClassVar[str] = "l2_norm"

    def scores(self, stats: CacheStats) -> Tensor:
        """Negative norms, of the precision of bfloat16.

        Raises:
            InputError: the statistics hold no keys.
        """
        if stats.keys is None:
            raise InputError(f"The policy {self.name} scores keys: give them among the statistics.")
        # In the first layer a token that comes again has the same norm but for the rounding of its rotation,
        # which must not decide who stays.
        return -stats.keys.float().norm(dim=-1).bfloat16().float()
