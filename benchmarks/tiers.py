"""A model folder for one combination of tiers, from parts that were trained apart.

    benchmarks/tiers.py runs/all --policy namm --memory smollm2-hmt --heads smollm2-mamba --recall 8

Tiers that are not named are off: without any, the attention policy over 512 live tokens is all there is.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hiermem import HierMemConfig, HierMemModel
from hiermem.lora import has_lora


def combined(policy: str, memory: str | None, heads: str | None, recall: int) -> HierMemModel:
    """`smollm2` with the tiers of other models.

    Args:
        policy: of the working memory.
        memory: model whose memory embeddings are read around the segments of a carried cache.
        heads: model whose Mamba heads take the places of attention heads.
        recall: segments that a question recalls.
    """
    config = HierMemConfig.preset("full").without_shipped()
    changes: dict[str, Any] = {
        "working": config.working.with_policy(policy),
        "longterm": replace(config.longterm, top_k=recall),
    }
    parameters: dict[str, Tensor] = {}
    for part, name in (("summary.", memory), ("mamba.", heads)):
        if name is not None:
            trained = HierMemModel.from_pretrained(name)
            every = trained.memory_parameters()
            taken = {key: tensor for key, tensor in every.items() if key.startswith(part)}
            if not taken or has_lora(trained.backbone) or trained.config.segment != config.segment:
                raise SystemExit(f"{name} has no such tier, or one of other segments or adapters.")
            parameters |= taken
            if part == "summary.":
                changes["summary"] = replace(trained.config.summary, sensory=0, query="previous")
            else:
                changes["mamba"] = trained.config.mamba
    model = HierMemModel.from_pretrained("smollm2", config=HierMemConfig(**config.settings() | changes))
    model.load_memory_parameters(model.memory_parameters() | parameters)
    return model


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--policy", default="attention", help="of the working memory")
    parser.add_argument("--memory", help="model whose trained memory embeddings are read")
    parser.add_argument("--heads", help="model whose Mamba heads are used")
    parser.add_argument("--recall", type=int, default=0, help="segments that a question recalls")
    args = parser.parse_args()
    combined(args.policy, args.memory, args.heads, args.recall).save_pretrained(args.out)


if __name__ == "__main__":
    main()
