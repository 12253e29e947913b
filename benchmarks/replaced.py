"""Reading, decoding and bytes of a model with Mamba heads beside the same backbone with all its heads.

    benchmarks/replaced.py smollm2-mamba --lengths 2048 8192 32768 --dtype bfloat16 --out replaced.json

In one process, in turns: after each length of random tokens, read in chunks of 512, 64 more are decoded one
by one over a copy of the memory, and the median counts. Times are the processor's, not those of a clock, so
models compute there.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hiermem import HierMemConfig, HierMemError, HierMemModel
from hiermem.errors import InputError
from hiermem.memory.working import WorkingMemory

CHUNK = 512
DECODED = 64


def kinds(model: HierMemModel, budget: int) -> dict[str, Callable[[], WorkingMemory]]:
    """New memories of the kinds that are compared, by name."""
    bare = HierMemConfig.preset("bare").working
    pruned = HierMemConfig.preset("full").with_working(policy="namm", budget=budget)
    namm = HierMemModel.from_pretrained(model.name_or_path, pruned, dtype=model.dtype, device="cpu")
    return {
        "all heads": model.adapter.whole_memory,
        "Mamba heads": lambda: model.new_working_memory(bare),
        f"Mamba heads, NAMM at {budget}": namm.new_recurrent_memory,
    }


@torch.inference_mode()
def measure(model: HierMemModel, lengths: list[int], budget: int) -> list[dict[str, Any]]:
    """Rows of tokens a second, reading from the length before and decoding, and bytes, for each length."""
    if not model.mamba.groups:
        raise InputError(
            f"{model.name_or_path} has no Mamba heads: give smollm2-mamba, or a training's output."
        )
    memories, vocabulary = {name: new() for name, new in kinds(model, budget).items()}, len(model.tokenizer)
    rng, rows, at = torch.Generator().manual_seed(0), [], 0
    for length in lengths:
        seconds = dict.fromkeys(memories, 0.0)
        ids = torch.randint(vocabulary, (1, length - at), generator=rng)
        for part in ids.split(CHUNK, dim=1):
            for name, memory in memories.items():
                seconds[name] += _seconds(model, memory, part)
        decoded = _decoded(model, memories, ids[:, :1])
        for name, memory in memories.items():
            row = {"kind": name, "tokens": length, "reading": ids.shape[1] / seconds[name]}
            states = memory.mamba.tensors().values() if memory.mamba is not None else ()
            row |= {"decoding": 1 / decoded[name], "bytes": memory.nbytes}
            rows.append(row | {"bytes_of_states": sum(tensor.nbytes for tensor in states)})
            sys.stdout.write(json.dumps(rows[-1]) + "\n")
            sys.stdout.flush()
        at = length
    return rows


def _decoded(
    model: HierMemModel, memories: dict[str, WorkingMemory], token: torch.Tensor
) -> dict[str, float]:
    """Median seconds of a token that is decoded over a copy of each memory, in turns."""
    copies = {name: memory.copy() for name, memory in memories.items()}
    turns = [{name: _seconds(model, copy, token) for name, copy in copies.items()} for _ in range(DECODED)]
    return {name: median(turn[name] for turn in turns) for name in copies}


def _seconds(model: HierMemModel, memory: WorkingMemory, ids: torch.Tensor) -> float:
    start = time.process_time()
    model.reader.logits(memory, ids, 1)
    return time.process_time() - start


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder or name of a model with Mamba heads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192], help="tokens to be read")
    parser.add_argument("--budget", type=int, default=512, help="tokens that NAMM keeps of each KV head")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the model's own")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if any(length < CHUNK or length % CHUNK for length in args.lengths):
        parser.error(f"--lengths are multiples of {CHUNK}, not {args.lengths}.")
    torch.set_num_threads(1)
    try:
        model = HierMemModel.from_pretrained(args.model, dtype=args.dtype, device="cpu")
        rows = measure(model, sorted(set(args.lengths)), args.budget)
    except HierMemError as error:
        parser.error(str(error))
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
