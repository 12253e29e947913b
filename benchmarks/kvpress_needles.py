"""kvpress methods on the prompts of `hiermem eval needles --dump`, in an environment from `make peers`.

kvpress pins an older transformers than hiermem, so of hiermem this program imports only what needs none: the
result log and the means. Its result joins the same report. A run that was stopped goes on where it was.

    .venv-peers/bin/python benchmarks/kvpress_needles.py --model DIR --prompts prompts.jsonl \\
        --method snapkv --keep 0.25 --out results/needles-snapkv-25.json
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KVzipPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from hiermem.errors import HierMemError
from hiermem.eval.metrics import means
from hiermem.eval.prompt_grounds import read_ground
from hiermem.eval.result_log import ResultLog, data_hash

METHODS = {
    "streamingllm": StreamingLLMPress,
    "snapkv": SnapKVPress,
    "tova": TOVAPress,
    "expected-attention": ExpectedAttentionPress,
    "keydiff": KeyDiffPress,
    "kvzip": KVzipPress,
}


def score(model: Any, tokenizer: Any, press: Any, prompt: dict[str, str]) -> dict[str, Any]:
    """Compress the context, then read question and answer: NLL per token of the answer, and exact match."""

    def encode(text: str) -> torch.Tensor:
        return tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids

    context, question, answer = (encode(prompt[part]) for part in ("context", "question", "answer"))
    cache, length = DynamicCache(), context.shape[1]
    with press(model):
        model.model(input_ids=context, past_key_values=cache)
    if isinstance(press, KVzipPress):  # hides what it drops instead of freeing it
        layers = model.model.layers
        hidden = sum(len(layer.self_attn.masked_key_indices[0]) for layer in layers)
        kept = 1 - hidden / (len(layers) * model.config.num_key_value_heads * length)
    else:
        kept = cache.get_seq_length() / length
    ids = torch.cat((question, answer[:, :-1]), dim=1)
    positions = torch.arange(length, length + ids.shape[1])[None]
    output = model(input_ids=ids, past_key_values=cache, position_ids=positions)
    logits = output.logits[0, -answer.shape[1] :].float()
    nll = torch.nn.functional.cross_entropy(logits, answer[0])
    return {"nll": float(nll), "exact": bool((logits.argmax(-1) == answer[0]).all()), "kept": kept}


def measure(args: argparse.Namespace, lines: list[str], log: ResultLog) -> dict[str, Any]:
    """Every prompt, compressed by the method."""
    prompts = [json.loads(line) for line in lines]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    press = METHODS[args.method](compression_ratio=1 - args.keep)
    with torch.inference_mode():
        rows = [
            log.row(str(index), score, model, tokenizer, press, prompt)
            for index, prompt in enumerate(tqdm(prompts, desc=args.method, disable=None))
        ]
    return means(rows, "nll", "exact", "kept")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one kvpress method on dumped needle prompts.")
    parser.add_argument("--model", required=True, help="Folder of the backbone.")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines from `--dump`.")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--keep", type=float, default=0.25, help="Share of the context that is kept.")
    parser.add_argument("--limit", type=int, default=24, help="Use only so many prompts.")
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the result.")
    args = parser.parse_args()
    if not 0 < args.keep <= 1 or args.limit < 1:
        parser.error("--keep must be above 0 and at most 1, --limit at least 1")
    if not args.prompts.is_file():
        parser.error(f"there is no file {args.prompts}: make it with `hiermem eval needles --dump`")
    lines = args.prompts.read_text("utf-8").splitlines()[: args.limit]
    settings = {**read_ground(args.prompts), "system": f"kvpress {args.method}", "keep": args.keep}
    settings |= {"limit": args.limit, "prompts": data_hash(*lines), "dtype": "float32", "device": "cpu"}
    log = ResultLog(args.out, settings)
    command = ".venv-peers/bin/python benchmarks/kvpress_needles.py --model DIR"
    command += f" --prompts {args.prompts.name} --method {args.method} --keep {args.keep}"
    command += f" --limit {args.limit} --out {args.out.name}"
    log.report(partial(measure, args, lines), command)


if __name__ == "__main__":
    try:
        main()
    except HierMemError as error:
        sys.stderr.write(f"kvpress_needles: {error}\n")
        sys.exit(2)
