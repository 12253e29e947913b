"""kvpress methods on the prompts of `hiermem eval needles --dump` and `hiermem eval ruler --dump`, in an
environment from `make peers`.

Needles are scored by the likelihood of their answer, RULER by a greedy answer. kvpress pins an older
transformers than hiermem, so of hiermem this program imports only what needs none: the result log and the
scores. Its result joins the same report. A run that was stopped goes on where it was.

    .venv-peers/bin/python benchmarks/kvpress_prompts.py --model DIR --prompts prompts.jsonl \\
        --method snapkv --keep 0.25 --out results/needles-snapkv-25.json
    .venv-peers/bin/python benchmarks/kvpress_prompts.py --model DIR --prompts ruler.jsonl --limit 20 \\
        --method expected-attention --keep 0.5 --out results/ruler-expected-attention-50.json
"""

import argparse
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
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
from hiermem.eval.ruler.scoring import any_found, share_found, summary

METHODS = {
    "streamingllm": StreamingLLMPress,
    "snapkv": SnapKVPress,
    "tova": TOVAPress,
    "expected-attention": ExpectedAttentionPress,
    "keydiff": KeyDiffPress,
    "knorm": KnormPress,
    "kvzip": KVzipPress,
}


Prompt = dict[str, Any]


def encoded(tokenizer: Any, text: str) -> torch.Tensor:
    """Token ids ``[1, n]``."""
    ids: torch.Tensor = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    return ids


def compressed(model: Any, press: Any, context: torch.Tensor) -> tuple[DynamicCache, float]:
    """The cache of a context, pruned by the method, and the share of its tokens that is kept."""
    cache, length = DynamicCache(), context.shape[1]
    with press(model):
        model.model(input_ids=context, past_key_values=cache)
    if not isinstance(press, KVzipPress):
        return cache, cache.get_seq_length() / length
    layers = model.model.layers  # hides what it drops instead of freeing it
    hidden = sum(len(layer.self_attn.masked_key_indices[0]) for layer in layers)
    return cache, 1 - hidden / (len(layers) * model.config.num_key_value_heads * length)


def read_on(model: Any, cache: DynamicCache, ids: torch.Tensor, start: int) -> torch.Tensor:
    """Logits ``[1, n, vocabulary]`` of tokens that stand at ``start`` and after it."""
    positions = torch.arange(start, start + ids.shape[1])[None]
    logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, position_ids=positions).logits
    return logits.float()


def needle(model: Any, tokenizer: Any, press: Any, prompt: Prompt) -> dict[str, Any]:
    """Compress the context, then read question and answer: NLL per token of the answer, and exact match."""
    context, question, answer = (
        encoded(tokenizer, prompt[part]) for part in ("context", "question", "answer")
    )
    cache, kept = compressed(model, press, context)
    ids = torch.cat((question, answer[:, :-1]), dim=1)
    logits = read_on(model, cache, ids, context.shape[1])[0, -answer.shape[1] :]
    nll = torch.nn.functional.cross_entropy(logits, answer[0])
    return {"nll": float(nll), "exact": bool((logits.argmax(-1) == answer[0]).all()), "kept": kept}


def ruler(model: Any, tokenizer: Any, press: Any, prompt: Prompt) -> dict[str, Any]:
    """Compress the context, then read the question and answer greedily: share of the references found."""
    context, ids = encoded(tokenizer, prompt["context"]), encoded(tokenizer, prompt["question"])
    cache, kept = compressed(model, press, context)
    at, answer, ends = context.shape[1], [], model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    while len(answer) < prompt["max_new_tokens"]:
        token = int(read_on(model, cache, ids, at)[0, -1].argmax())
        if token in ends:
            break
        answer.append(token)
        at, ids = at + ids.shape[1], torch.tensor([[token]])
    text = tokenizer.decode(answer, skip_special_tokens=True)
    score = any_found if prompt["any_answer"] else share_found
    found = {"answer": text, "score": score(text, prompt["answer"]), "kept": kept}
    return {"task": prompt["task"], "length": prompt["length"], **found}


def measure(args: argparse.Namespace, prompts: list[Prompt], log: ResultLog) -> dict[str, Any]:
    """Every prompt, compressed by the method."""
    score = ruler if is_ruler(prompts) else needle
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    press = METHODS[args.method](compression_ratio=1 - args.keep)
    with torch.inference_mode():
        rows = [
            log.row(str(index), score, model, tokenizer, press, prompt)
            for index, prompt in enumerate(tqdm(prompts, desc=args.method, disable=None))
        ]
    return summary(rows) if is_ruler(prompts) else means(rows, "nll", "exact", "kept")


def is_ruler(prompts: list[Prompt]) -> bool:
    """Whether prompts are those of RULER: they name their task."""
    return "task" in prompts[0]


def first(lines: list[str], limit: int) -> list[str]:
    """The first ``limit`` lines of each kind of prompt."""
    counts: Counter[tuple[Any, ...]] = Counter()
    found = []
    for line in lines:
        prompt = json.loads(line)
        kind = (prompt.get("task"), prompt.get("length"))
        counts[kind] += 1
        if counts[kind] <= limit:
            found.append(line)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one kvpress method on dumped prompts.")
    parser.add_argument("--model", required=True, help="Folder of the backbone.")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines from `--dump`.")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--keep", type=float, default=0.25, help="Share of the context that is kept.")
    parser.add_argument(
        "--limit", type=int, default=24, help="Use only so many prompts; of RULER, of each task and length."
    )
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the result.")
    args = parser.parse_args()
    if not 0 < args.keep <= 1 or args.limit < 1:
        parser.error("--keep must be above 0 and at most 1, --limit at least 1")
    if not args.prompts.is_file():
        parser.error(f"there is no file {args.prompts}: make it with `hiermem eval needles --dump`")
    lines = first(args.prompts.read_text("utf-8").splitlines(), args.limit)
    prompts = [json.loads(line) for line in lines]
    settings = {**read_ground(args.prompts), "system": f"kvpress {args.method}", "keep": args.keep}
    settings |= {"limit": args.limit, "prompts": data_hash(*lines), "dtype": "float32", "device": "cpu"}
    log = ResultLog(args.out, settings)
    command = ".venv-peers/bin/python benchmarks/kvpress_prompts.py --model DIR"
    command += f" --prompts {args.prompts.name} --method {args.method} --keep {args.keep}"
    command += f" --limit {args.limit} --out {args.out.name}"
    log.report(partial(measure, args, prompts), command)


if __name__ == "__main__":
    try:
        main()
    except HierMemError as error:
        sys.stderr.write(f"kvpress_prompts: {error}\n")
        sys.exit(2)
