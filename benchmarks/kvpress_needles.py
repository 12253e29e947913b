"""kvpress methods on the prompts of `hiermem eval needles --dump`, in an environment from `make peers`.

kvpress pins an older transformers than hiermem, so this program imports nothing of hiermem. Its result has
the shape of `hiermem eval needles` and joins the same report. A run that was stopped goes on where it was.

    .venv-peers/bin/python benchmarks/kvpress_needles.py --model DIR --prompts prompts.jsonl \\
        --method snapkv --keep 0.25 --out results/needles-snapkv-25.json
"""

import argparse
import json
import time
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
    masks = isinstance(press, KVzipPress)  # hides what it drops instead of freeing it
    kept = 1 - press.compression_ratio if masks else cache.get_seq_length() / length
    ids = torch.cat((question, answer[:, :-1]), dim=1)
    positions = torch.arange(length, length + ids.shape[1])[None]
    output = model(input_ids=ids, past_key_values=cache, position_ids=positions)
    logits = output.logits[0, -answer.shape[1] :].float()
    nll = torch.nn.functional.cross_entropy(logits, answer[0])
    return {"nll": float(nll), "exact": bool((logits.argmax(-1) == answer[0]).all()), "kept": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one kvpress method on dumped needle prompts.")
    parser.add_argument("--model", required=True, help="Folder of the backbone.")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON lines from `--dump`.")
    parser.add_argument("--method", required=True, choices=METHODS)
    parser.add_argument("--keep", type=float, default=0.25, help="Share of the context that is kept.")
    parser.add_argument("--limit", type=int, help="Use only so many prompts.")
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the result.")
    given = parser.parse_args()
    if given.out.exists():
        return
    lines = given.prompts.read_text("utf-8").splitlines()[: given.limit]
    part = given.out.with_name(given.out.name + ".part")
    known = part.read_text("utf-8").splitlines(keepends=True) if part.exists() else []
    rows = [json.loads(line) for line in known if line.endswith("\n")]
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    press = METHODS[given.method](compression_ratio=1 - given.keep)
    start = time.perf_counter()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with torch.inference_mode(), part.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        for line in tqdm(lines[len(rows) :], desc=given.method, disable=None):
            rows.append(score(model, tokenizer, press, json.loads(line)))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("nll", "exact", "kept")}
    config = {"system": f"kvpress {given.method}", "keep": given.keep, "prompts": given.prompts.name}
    seconds = time.perf_counter() - start
    command = (
        f".venv-peers/bin/python benchmarks/kvpress_needles.py --model DIR --prompts {given.prompts.name} "
        f"--method {given.method} --keep {given.keep} --limit {len(rows)} --out {given.out.name}"
    )
    report = {"task": "needles", "metrics": means, "n": len(rows), "config": config, "seconds": seconds}
    report["command"] = command
    given.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    part.unlink()


if __name__ == "__main__":
    main()
