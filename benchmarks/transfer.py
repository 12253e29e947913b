"""Zero-shot transfer: the network evolved on smollm2, unchanged, on tiny models of two other families.

The models are trained here, from scratch, to recall facts in texts without words. Three tokens make a
sentence: a fact (`FACT key value`), a reference to one (`REFER key class`, where the class follows from the
value and tells 2 of its 5 bits), or fillers that go on from one another. Facts stand anywhere; half of them
are referred back to later on, the others never. In the end all are asked (`ASK key value`); what is kept was
decided before. Takes four minutes of one core.

    .venv/bin/python benchmarks/transfer.py --out results/transfer.json
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedModel, Qwen3Config

from hiermem import HierMemConfig, HierMemModel
from hiermem.errors import HierMemError
from hiermem.eval.metrics import means
from hiermem.eval.result_log import ResultLog
from hiermem.eviction_weights import AUTO, resolve_eviction_weights
from hiermem.training.calibration import CalibrationConfig, calibrate
from hiermem.training.evolve import averaged_attention

BOS, FACT, REFER, ASK, KEY = range(5)
KEYS, VALUES, CLASSES, FILLERS = 32, 32, 4, 48
VALUE, CLASS, FILLER = KEY + KEYS, KEY + KEYS + VALUES, KEY + KEYS + VALUES + CLASSES
SENTENCES, FACTS, REFERENCES = 341, 16, 3  # 1,024 tokens; references of each fact that is referred to
INTERVAL, BATCH = 256, 25

_COMMON = {
    "vocab_size": FILLER + FILLERS,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1 + 3 * SENTENCES + INTERVAL,
    "initializer_range": 0.1,
    "bos_token_id": BOS,
    "eos_token_id": None,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
FAMILIES = {
    "gpt-neox": partial(GPTNeoXConfig, **_COMMON, rope_parameters=_ROPE | {"partial_rotary_factor": 0.5}),
    "qwen3": partial(Qwen3Config, **_COMMON, rope_parameters=_ROPE, num_key_value_heads=2, head_dim=16),
}


class Shape(NamedTuple):
    """Sizes of a text.

    Attributes:
        sentences: in all, fillers among them.
        facts: told once each.
        references: to each fact that is referred to, the first half of them.
        in_use: how many keys and values there are.
    """

    sentences: int
    facts: int
    references: int
    in_use: int


WHOLE = Shape(SENTENCES, FACTS, REFERENCES, KEYS)
CURRICULUM = (  # with the rows of a batch
    (Shape(6, 4, 0, 6), 48),
    (Shape(8, 6, 0, 12), 40),
    (Shape(12, 8, 0, 32), 32),
    (Shape(21, 6, REFERENCES, 32), 20),
    (Shape(42, 8, REFERENCES, 32), 12),
    (Shape(85, 16, REFERENCES, 32), 8),
    (Shape(171, 16, REFERENCES, 32), 4),
    (WHOLE, 4),
)
"""Matching a key with itself is learned fast among few keys only, and is the same among many."""


class Method(NamedTuple):
    """Case that a row measures: a policy, with or without head shares, and whether NAMM's network evolved."""

    name: str
    policy: str
    shares: bool = False
    evolved: bool = True


SYSTEMS = [
    Method("full", "none"),
    Method("window", "window"),
    Method("attention", "attention"),
    Method("namm, not evolved", "namm", evolved=False),
    Method("namm", "namm"),
    Method("window, calibrated shares", "window", shares=True),
    Method("attention, calibrated shares", "attention", shares=True),
    Method("namm, not evolved, calibrated shares", "namm", shares=True, evolved=False),
    Method("namm, calibrated shares", "namm", shares=True),
]


@dataclass(frozen=True)
class Texts:
    """Texts of one length with the questions after them.

    Attributes:
        ids: ``[B, 1 + 3 * sentences]`` int64.
        asks: questions with their answers, ``[B, 3 * questions]`` int64.
        referred: which questions are for facts that were referred to, ``[B, questions]`` bool.
    """

    ids: Tensor
    asks: Tensor
    referred: Tensor


def texts(rng: torch.Generator, rows: int, shape: Shape = WHOLE, again: bool = False) -> Texts:
    """Random texts, whose first half of facts has references at any later time.

    Args:
        again: ask twice as many questions as there are facts, each for any of them, in place of all in
            turn: a model in training cannot tell an answer by what was not said yet.
    """
    sentences, facts, references, in_use = shape
    keys = torch.rand(rows, in_use, generator=rng).argsort(-1)[:, :facts]
    values = torch.randint(in_use, (rows, facts), generator=rng)
    fact_times = torch.rand(rows, facts, 1, generator=rng)
    later = fact_times + (1 - fact_times) * torch.rand(rows, facts, references, generator=rng)
    times = torch.cat((fact_times.flatten(1), later[:, : facts // 2].flatten(1)), dim=1)
    of = torch.arange(facts)
    of = torch.cat((of, of[: facts // 2].repeat_interleave(references))).expand(rows, -1)
    events = times.shape[1]
    place = (times * (sentences - events)).long() + times.argsort(-1).argsort(-1)  # no two the same

    steps = torch.tensor([1, 2, 4, 7])[torch.randint(4, (rows, 3 * sentences), generator=rng)]
    body = (FILLER + steps.cumsum(-1) % FILLERS).view(rows, sentences, 3)
    key, value = KEY + keys.gather(1, of), values.gather(1, of)
    is_fact = (torch.arange(events) < facts).expand(rows, -1)
    # A reference tells the class of its fact's value: 2 of its 5 bits.
    last = torch.where(is_fact, VALUE + value, CLASS + value % CLASSES)
    sentence = torch.stack((torch.where(is_fact, FACT, REFER), key, last), dim=-1)
    body = body.scatter(1, place.unsqueeze(-1).expand_as(sentence), sentence)

    queries = torch.rand(rows, facts, generator=rng).argsort(-1)
    if again:
        queries = torch.randint(facts, (rows, 2 * facts), generator=rng)
    question = (torch.full_like(queries, ASK), key.gather(1, queries), VALUE + value.gather(1, queries))
    ids = torch.cat((torch.full((rows, 1), BOS), body.flatten(1)), dim=1)
    return Texts(ids, torch.stack(question, dim=-1).flatten(1), queries < facts // 2)


def train(family: str, seed: int, most: int) -> tuple[PreTrainedModel, int]:
    """A model that recalls, and the steps it took; every stage lasts until answers are right.

    Args:
        most: steps after which training ends in any case.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 100))
    rng = torch.Generator().manual_seed(3 * seed)
    steps, bar = 0, tqdm(total=most, desc=f"training {family}", disable=None)
    for stage, (shape, rows) in enumerate(CURRICULUM):
        right: list[float] = []
        while steps < most and (len(right) < 50 or sum(right[-50:]) < 0.97 * 50):
            batch = texts(rng, rows, shape, again=True)
            loss, accuracy = _loss(model, torch.cat((batch.ids, batch.asks), dim=1))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            warm_up.step()
            right.append(accuracy)
            steps += 1
            bar.update()
            bar.set_postfix(stage=stage, right=f"{sum(right[-50:]) / len(right[-50:]):.2f}", refresh=False)
    bar.close()
    return model.eval(), steps


def _loss(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, float]:
    """Negative log-likelihood, mostly of what can be known, and the share of right answers to questions."""
    logits, targets = model(input_ids=ids, use_cache=False).logits[:, :-1], ids[:, 1:]
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    marks = F.pad(ids[:, :-2], (1, 0))
    predictable = (marks == REFER) | (marks == ASK)
    right = (logits.argmax(-1) == targets)[marks == ASK]
    return nll[predictable].mean() + 0.1 * nll[~predictable].mean(), float(right.float().mean())


def attach(family: str, backbone: PreTrainedModel) -> HierMemModel:
    """The library around a backbone, with the network that any backbone gets that has none of its own."""
    evictor = resolve_eviction_weights(AUTO, family, "namm")
    assert evictor is not None and evictor.shares is None
    config = HierMemConfig(chunk=INTERVAL, segment=INTERVAL).with_working(update_interval=INTERVAL)
    between = SimpleNamespace(input_ids=[BOS])  # what a calibration puts between two readings
    model = HierMemModel(config.with_evictor(evictor), backbone, lambda *_, **__: between)
    return model.eval()


def networks(model: HierMemModel) -> dict[bool, dict[str, Tensor]]:
    """Parameters of the evolved network, and of the one that evolution began with."""
    evictor = resolve_eviction_weights(AUTO, "", "namm")
    assert evictor is not None and evictor.network is not None
    return {True: evictor.network, False: averaged_attention(model.config.namm).state_dict()}


@torch.inference_mode()
def recall(model: HierMemModel, made: Texts, **working: Any) -> Iterator[dict[str, float]]:
    """Read texts, let the policy decide, then ask all questions: one row for each text.

    Args:
        working: settings of the working memory.
    """
    batch, length = made.ids.shape
    memory = model.new_working_memory(replace(model.config.working, **working), batch)
    for _ in model.reader.stream(memory, made.ids):
        pass
    memory.evict()
    kept = memory.cache.mean_tokens / length
    logits = model.reader.logits(memory, made.asks)[:, 1::3]
    answers = made.asks[:, 2::3]
    nll = F.cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view_as(answers)
    right = (logits.argmax(-1) == answers).float()
    for row, referred in enumerate(made.referred):
        both = {"referred": right[row, referred], "others": right[row, ~referred], "nll": nll[row]}
        yield {"accuracy": float(right[row].mean()), "kept": kept} | {
            k: float(v.mean()) for k, v in both.items()
        }


def measure(args: argparse.Namespace, family: str) -> dict[str, Any]:
    """Train one family, calibrate its head shares, and read the same texts under every policy."""
    start = time.perf_counter()
    backbone, steps = train(family, args.seed, args.steps)
    trained, model = time.perf_counter() - start, attach(family, backbone)
    sample = texts(torch.Generator().manual_seed(3 * args.seed + 1), 4).ids
    calibration = CalibrationConfig(tokens=512, texts=4)
    shares = calibrate(model.reader, sample.flatten().tolist(), calibration).shares
    rng = torch.Generator().manual_seed(3 * args.seed + 2)
    batches = [texts(rng, min(BATCH, args.contexts - at)) for at in range(0, args.contexts, BATCH)]
    length, results = batches[0].ids.shape[1], []
    runs = [(1.0, SYSTEMS[0]), *((keep, system) for keep in args.keep for system in SYSTEMS[1:])]
    parameters = networks(model)
    for keep, system in tqdm(runs, desc=f"reading, {family}", disable=None):
        model.namm.load_state_dict(parameters[system.evolved])
        settings = {
            "policy": system.policy,
            "budget": round(keep * length),
            "head_shares": shares if system.shares else None,
        }
        rows = [row for batch in batches for row in recall(model, batch, **settings)]
        result = means(rows, "accuracy", "referred", "others", "nll", "kept")
        results.append({"family": family, "system": system.name, "keep": keep, **result})
    return {"results": results, "shares": shares, "steps": steps, "training_seconds": trained}


def main() -> None:
    parser = argparse.ArgumentParser(description="Try the evolved network on tiny models of other families.")
    parser.add_argument("--out", required=True, type=Path, help="JSON file for the result.")
    parser.add_argument("--seed", type=int, default=0, help="Of weights, training and texts.")
    parser.add_argument("--steps", type=int, default=3000, help="Most training steps of one family.")
    parser.add_argument(
        "--contexts", type=int, default=200, help="Texts that are read, of 16 questions each."
    )
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.25, 0.5], help="Shares of a text to keep."
    )
    args = parser.parse_args()
    if min(args.steps, args.contexts) < 1 or not all(0.01 <= keep <= 1 for keep in args.keep):
        parser.error("--steps and --contexts must be at least 1, --keep from 0.01 to 1")
    settings = {"seed": args.seed, "steps": args.steps, "contexts": args.contexts, "keep": args.keep}
    evictor = resolve_eviction_weights(AUTO, "", "namm")
    assert evictor is not None
    log = ResultLog(args.out, {"task": "transfer", **settings, "evictor": evictor.digest})

    def all_families(log: ResultLog) -> dict[str, Any]:
        families = {name: log.row(name, measure, args, name) for name in FAMILIES}
        rows = [result for family in families.values() for result in family.pop("results")]
        accuracy = {
            method.name: [r["metrics"]["accuracy"] for r in rows if r["system"] == method.name]
            for method in SYSTEMS
        }
        metrics = {name: sum(values) / len(values) for name, values in accuracy.items()}
        return {"metrics": metrics, "n": args.contexts, "rows": rows, "families": families}

    command = f"python benchmarks/transfer.py --seed {args.seed} --steps {args.steps}"
    command += f" --contexts {args.contexts} --keep {' '.join(map(str, args.keep))} --out {args.out.name}"
    log.report(all_families, command)


if __name__ == "__main__":
    try:
        main()
    except HierMemError as error:
        sys.stderr.write(f"transfer: {error}\n")
        sys.exit(2)
