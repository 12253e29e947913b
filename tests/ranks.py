"""Run by a launcher in two processes: trains a tiny model in all ways DeepSpeed can, keeps the losses."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed
from trainings import COMBINATIONS, combination, deepspeed_settings, steps

from hiermem.ending import end
from hiermem.training.distributed import one_of_many
from hiermem.training.engine import new_engine


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with one_of_many(always=True) as first:
        results = {}
        for stage in (1, 2, 3):
            path = folder / f"zero-{stage}.json"
            if first:
                path.write_text(json.dumps(deepspeed_settings(stage)))
            distributed.barrier()
            for name in COMBINATIONS:
                objective, config = combination(name)
                engine = new_engine(objective, config, path)
                losses = steps(engine, 2)
                checkpoint = folder / f"{stage}-{name}"
                engine.save(checkpoint)
                after = steps(engine, 1, first=2)
                again = new_engine(combination(name)[0], config, path)
                again.load(checkpoint)
                with engine.gathered():
                    if first:
                        engine.objective.model.save_pretrained(folder / f"model-{stage}-{name}")
                results[f"{stage}-{name}"] = {
                    "losses": [*losses, *after],
                    "resumed": steps(again, 1, first=2),
                }
        if first:
            (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
    end(0)
