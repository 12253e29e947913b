"""Reading speed and live bytes of several models, segment by segment in turn and in one process.

    benchmarks/reading.py book.txt runs/window runs/namm runs/all --tokens 8192 --out reading.json

The first one is what the others are compared with. Times are the processor's, not those of a clock, so models
compute there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from hiermem import HierMemModel, MemoryState


def measure(names: list[str], text: str, tokens: int, dtype: str | None) -> list[dict[str, Any]]:
    """Rows of tokens a second, its share of the first model's, and bytes after ``tokens`` tokens."""
    models = {name: HierMemModel.from_pretrained(name, dtype=dtype, device="cpu") for name in names}
    first = next(iter(models.values()))
    ids, step = torch.tensor(first.tokenizer(text, verbose=False).input_ids[:tokens]), first.config.segment
    memories: dict[str, MemoryState | None] = dict.fromkeys(models)
    seconds = dict.fromkeys(models, 0.0)
    for at in range(0, len(ids), step):
        for name, model in models.items():
            start = time.process_time()
            memories[name] = model.read(ids[at : at + step], memories[name], progress=False)
            seconds[name] += time.process_time() - start
    speeds = {name: len(ids) / taken for name, taken in seconds.items()}
    return [
        {
            "model": name,
            "tokens": len(ids),
            "tokens_per_second": speeds[name],
            "of_the_first": speeds[name] / speeds[names[0]],
            "live_bytes": memory.working.nbytes,
        }
        for name, memory in memories.items()
        if memory is not None
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("text", type=Path, help="text file to read")
    parser.add_argument("models", nargs="+", help="folders or names of models")
    parser.add_argument("--tokens", type=int, default=8192, help="how much of the text")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the models' own")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.models, args.text.read_text("utf-8"), args.tokens, args.dtype)
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
