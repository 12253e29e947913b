"""An eviction policy of your own in one class, compared with those that ship on the same text.

python examples/custom_policy.py --budget 256
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import typer
from torch import Tensor

from hiermem import HierMemConfig, HierMemModel
from hiermem.bundled import python_reference
from hiermem.errors import InputError
from hiermem.memory.policies import CacheStats, EvictionPolicy, register_policy


@dataclass(frozen=True)
class ThinningPolicy(EvictionPolicy):
    """Every `stride`-th token outlives the others, so that old text gets thinner instead of being cut off.

    Attributes:
        stride: one token in so many outlives the others, at least 1.
    """

    stride: int = 4

    name: ClassVar[str] = "thinning"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise InputError(f"The stride must be at least 1, not {self.stride}.")

    def scores(self, stats: CacheStats) -> Tensor:
        """Positions ``[B, G, T]`` to scores of the same shape: higher stays longer."""
        chosen = stats.positions % self.stride == 0
        return stats.positions.float() + torch.where(chosen, 1e6, 0.0)


register_policy(ThinningPolicy)


def main(model: str = "smollm2", budget: int = 256, tokens: int = 2048) -> None:
    for policy in ("window", "attention", "thinning"):
        config = HierMemConfig.preset("full").with_working(policy=policy, budget=budget)
        reader = HierMemModel.from_pretrained(model, config=config)
        ids = reader.tokenizer(python_reference()[: 8 * tokens], return_tensors="pt").input_ids[:, :tokens]
        with torch.inference_mode():
            loss = reader(ids, labels=ids).loss
        print(f"{policy:>10}: perplexity {loss.exp():.2f}")


if __name__ == "__main__":
    typer.run(main)
