"""What is compared before and after a change of structure or names: see `golden.py`.

Only what users type and what files hold stands here: settings by name, parameters by name, the model's public
methods, commands.
"""

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from commands import result
from families import CONFIGS
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from hiermem import HierMemConfig, HierMemError, HierMemModel, MemoryState

Figures = dict[str, Any]
"""Tensors, and what JSON holds, by name."""

DATA = Path(__file__).parent / "data"
SAVED = DATA / "golden" / "saved"
OLD = DATA / "saved-2"
"""With the tokenizer of all tiny models, and a backbone that models of formats 1 and 2 name."""


class Unavailable(Exception):
    """A package that a figure needs is not here."""


# ---- models

MAMBA = {"groups": [[0, 1], [2, 0], [2, 1]], "taps": 3, "window": 6, "sinks": 2}
EMBEDDINGS = {"tokens": 2, "sensory": 3, "width": 8}
HALF = EMBEDDINGS | {"query": "half"}
SHARES = [[3.0, 1.0], [1.0, 1.0], [1.0, 3.0]]
NETWORK = {"spectrogram": {"width": 8, "hop": 4, "decay": 0.9}}

Parts = dict[str, Any]
"""Settings by name; those of the working memory under `working`."""

ATTENTION: Parts = {"working": {"policy": "attention"}}
WINDOW: Parts = {"working": {"policy": "window", "positions": "compact"}}
NAMM: Parts = {"namm": NETWORK, "working": {"policy": "namm", "sinks": 0, "recent_share": 0.25}}
FORGET: Parts = {"segment": 16, "working": {"policy": "forget", "positions": "compact"}}
NONE: Parts = {"working": {"policy": "none", "positions": "absolute"}}
POLICIES = {"window": WINDOW, "attention": ATTENTION, "namm": NAMM, "forget": FORGET, "none": NONE}


def working(parts: Parts, **changes: Any) -> Parts:
    """The settings with others of the working memory."""
    return parts | {"working": parts["working"] | changes}


EVERYTHING = working(ATTENTION, head_shares=SHARES) | {"segment": 32, "summary": EMBEDDINGS, "mamba": MAMBA}
PUBLISHED = working(FORGET, sinks=0, update_interval=32, trained_range=80) | {"segment": 32, "chunk": 32}

TIERS: dict[str, tuple[str, Parts]] = {
    "absolute": ("llama", working(ATTENTION, positions="absolute")),
    "short-chunks": ("llama", ATTENTION | {"chunk": 8}),
    "long-intervals": ("llama", working(ATTENTION, update_interval=32, trained_range=80)),
    "shares": ("llama", working(ATTENTION, head_shares=SHARES)),
    "shares-namm": ("llama", working(NAMM, head_shares=SHARES)),
    "namm-within-its-budget": ("llama", NAMM | {"namm": NETWORK | {"threshold": None, "hidden": 0}}),
    "embeddings": ("llama", ATTENTION | {"segment": 32, "summary": EMBEDDINGS | {"search": 6}}),
    "embeddings-half": ("llama", FORGET | {"summary": HALF}),
    "hmt": ("llama", PUBLISHED | {"preset": "hmt"}),
    "mamba": ("llama", WINDOW | {"mamba": MAMBA}),
    "mamba-blind": ("llama", WINDOW | {"mamba": MAMBA | {"window": 0}}),
    "isolated": ("llama", FORGET | {"summary": HALF, "mamba": MAMBA}),
    "everything": ("llama", EVERYTHING),
    "adapter": ("llama", ATTENTION | {"segment": 32, "summary": EMBEDDINGS}),
    "gpt2-embeddings": ("gpt2", ATTENTION | {"segment": 32, "summary": EMBEDDINGS}),
    "gemma2-mamba": ("gemma2", WINDOW | {"mamba": MAMBA}),
    "opt-isolated": ("opt", FORGET | {"summary": HALF, "mamba": MAMBA}),
    "gpt-neox-mamba": ("gpt-neox", ATTENTION | {"mamba": MAMBA, "segment": 32, "summary": EMBEDDINGS}),
}


def configuration(parts: Parts) -> HierMemConfig:
    """Settings in proportion to the tiny models' range of 64 positions, or a preset, with those given."""
    if "preset" in parts:
        return HierMemConfig.preset(parts["preset"], **{k: v for k, v in parts.items() if k != "preset"})
    own = {"budget": 24, "sinks": 2, "update_interval": 16} | parts["working"]
    longterm = {"top_k": 2, "lexical": {"dim": 64}}
    return HierMemConfig(
        **({"chunk": 16, "segment": 48, "evictor": "none", "longterm": longterm} | parts | {"working": own})
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes with a few merges, 320 tokens."""
    return PreTrainedTokenizerFast.from_pretrained(OLD / "backbone")


def model_of(
    backbone: Any,
    parts: Parts,
    reads: bool = False,
    adapter: bool = False,
    lively: bool = False,
    dtype: torch.dtype = torch.float32,
) -> HierMemModel:
    """A tiny model with parameters that are drawn by their names.

    Args:
        backbone: its configuration.
        reads: whether it knows texts, beside tokens.
        adapter: whether its backbone gets one.
        lively: whether its layers are strong enough for answers that are more than one token again and again;
            one that reads its own recall, too, would make much of a rounding.
    """
    backbone = deepcopy(backbone)
    backbone.vocab_size = 320 if reads else backbone.vocab_size
    own = AutoModelForCausalLM.from_config(backbone, dtype=torch.float32)
    model = HierMemModel(configuration(parts), own, tokenizer() if reads else None)
    if adapter:
        add_adapter(model)
    for name, parameter in model.named_parameters():
        if "norm" not in name and ".ln_" not in name:
            draw = torch.Generator().manual_seed(crc32(name.encode()))
            deviation = (
                0.02 if name.endswith(("decay", "scale")) else 0.6 if lively and ".layers." in name else 0.2
            )
            with torch.no_grad():
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=draw))
    model.requires_grad_(True)
    model.backbone.to(dtype)
    return model.eval()


def add_adapter(model: HierMemModel) -> None:
    """Put an adapter into the backbone.

    Raises:
        Unavailable: there is no PEFT, or none that this version of transformers takes.
    """
    try:
        from peft import LoraConfig

        model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    except (ImportError, ValueError) as error:
        raise Unavailable("adapters need a version of PEFT that transformers takes") from error


# ---- logits, losses, gradients, what is generated


def ids_of(length: int, rows: int = 1) -> Tensor:
    """Random token ids ``[rows, length]`` without special tokens."""
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def told(logits: Tensor, ids: Tensor) -> Tensor:
    """The log-likelihood of each next token ``[B, N - 1]``."""
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2).detach()


def computed(model: HierMemModel, length: int = 118) -> Figures:
    """What a model makes of an input: whole, in pieces, and of a padded batch."""
    ids, whole = ids_of(length), {}
    output = model(ids, labels=ids)
    output.loss.backward()
    rows = output.logits[0, [length // 5, length // 2, length - 1]].detach().clone()
    whole = {"loss": output.loss.detach(), "told": told(output.logits, ids), "logits": rows}
    graded = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
    whole["gradients"] = torch.stack([_sampled(gradient) for gradient in graded.values()])
    whole["graded"] = list(graded)
    with torch.no_grad():
        return (
            whole
            | _in_pieces(model, ids)
            | _batched(model, ids_of(min(length, 70), 3))
            | _generated(model, ids)
        )


def _sampled(gradient: Tensor) -> Tensor:
    """Its norm and three of its values."""
    some = torch.linspace(0, gradient.numel() - 1, 3).long()
    return torch.cat((gradient.norm().view(1), gradient.flatten()[some]))


def _in_pieces(model: HierMemModel, ids: Tensor) -> Figures:
    cache, pieces, cuts = None, [], [0, 5, 37, 38, 70, ids.shape[1]]
    for start, end in pairwise(cuts):
        if start < end:
            output = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache, pieces = output.past_key_values, [*pieces, output.logits]
    return {"in pieces": told(torch.cat(pieces, dim=1), ids)}


def _batched(model: HierMemModel, ids: Tensor) -> Figures:
    width = ids.shape[1]
    mask = (torch.arange(width) < torch.tensor([width, width * 2 // 3, width // 2]).unsqueeze(1)).long()
    figures = {}
    for side, own in (("right", mask), ("left", mask.flip(1))):
        logits = model(ids, attention_mask=own).logits
        figures[f"padded {side}"] = told(logits, ids) * (own[:, 1:] * own[:, :-1])
    if not (model.config.summary.query == "half" and model.config.mamba.groups):  # which reads row by row
        made = model.generate(ids, attention_mask=mask.flip(1), max_new_tokens=6, do_sample=False)
        figures["generated of rows"] = made[:, width:].int()
    return figures


def _generated(model: HierMemModel, ids: Tensor) -> Figures:
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return {"generated": made[0, ids.shape[1] :].int()}


def family(name: str) -> Figures:
    """A family under every policy; where nothing is evicted, it reads what it has positions for."""
    figures = {}
    for policy, parts in POLICIES.items():
        model, length = model_of(CONFIGS[name], parts), 40 if policy == "none" else 118
        own = computed(model, length)
        figures |= {f"{policy}: {figure}": value for figure, value in own.items()}
    return figures


def tier(name: str, dtype: torch.dtype = torch.float32) -> Figures:
    """A combination of memories."""
    known, parts = TIERS[name]
    return computed(model_of(CONFIGS[known], parts, adapter=name == "adapter", dtype=dtype))


# ---- saved models and memories

WORDS = """
the captain of a ship called Orion sailed north with barrels of salt and a cat; nobody knew why. At dawn ice
closed in, café naïve 東京 🚢 wind fell silent while men sang old songs about home
""".split()
QUESTIONS = ("Who sang old songs about home?", "What was the ship called?", "Quid novi?")


def text_of(words: int, seed: int) -> str:
    """A text with punctuation, empty lines and characters of one to four bytes."""
    chosen = random.Random(seed).choices(WORDS, k=words)
    return "".join(word + ("\n\n" if at % 23 == 22 else " ") for at, word in enumerate(chosen))


TEXT, MORE = text_of(60, seed=1), text_of(30, seed=2)

SMALL = {"groups": [[0, 1]], "taps": 3, "window": 6, "sinks": 2}
TWO = [[3.0, 1.0], [1.0, 3.0]]
SAVED_TIERS: dict[str, Parts] = {
    "plain": ATTENTION,
    "shares": working(ATTENTION, head_shares=TWO),
    "namm": working(NAMM, head_shares=TWO),
    "embeddings": ATTENTION
    | {"segment": 32, "summary": EMBEDDINGS | {"search": 6}, "asking": {"rerank": 4, "margin": 9.0}},
    "published": FORGET | {"summary": HALF | {"neutral": False}},
    "mamba": WINDOW | {"mamba": SMALL, "asking": {"working": True}},
    "isolated": FORGET | {"summary": HALF, "mamba": SMALL},
    "every-part": working(ATTENTION, head_shares=TWO)
    | {"segment": 32, "summary": EMBEDDINGS, "mamba": SMALL},
}
"""Each is kept as ``TIER/model`` and ``TIER/memory``."""

FIRST_TIERS: dict[str, Parts] = {
    "plain": ATTENTION,
    "shares": working(ATTENTION, head_shares=SHARES),
    "namm": NAMM,
    "embeddings": ATTENTION | {"summary": EMBEDDINGS | {"search": 6}},
    "mamba": WINDOW | {"mamba": MAMBA},
    "isolated": FORGET | {"summary": HALF, "mamba": MAMBA},
}
"""Of the memories of the first format, see `tiers.py`."""


def write_saved(name: str) -> None:
    """Save a model and a memory, unless they are there."""
    if not (SAVED / name).exists():
        backbone, parts = (
            AutoConfig.from_pretrained(OLD / "backbone"),
            {"namm": {"hidden": 0}} | SAVED_TIERS[name],
        )
        model = model_of(
            backbone, parts, reads=True, adapter=name == "every-part", lively=name != "published"
        )
        model.save_pretrained(SAVED / name / "model")
        model = HierMemModel.from_pretrained(SAVED / name / "model", dtype="float32", device="cpu")
        model.read(TEXT, progress=False).save(SAVED / name / "memory")
        (SAVED / name / "memory" / ".lock").unlink(missing_ok=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that does not last."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def saved(name: str) -> Figures:
    """A model and a memory of now."""
    if name == "every-part":
        _need_adapters()
    folder = SAVED / name
    model = HierMemModel.from_pretrained(folder / "model", dtype="float32", device="cpu")
    figures = remembered(model, folder / "memory")
    with scratch() as again:
        model.save_pretrained(again / "model")
        figures["parameters"] = {
            file.name: {
                name: tensor.float().norm().item() for name, tensor in sorted(load_file(file).items())
            }
            for file in sorted((again / "model").rglob("*.safetensors"))
        }
        model.read(TEXT, progress=False).save(again / "memory")
        figures["read anew"] = contents(again / "memory")
    ids = ids_of(90)
    with torch.no_grad():
        return figures | {"told": told(model(ids).logits, ids)}


def first_format(name: str) -> Figures:
    """A memory of the first format."""
    folder = DATA / "memories" / "format1" / name
    longterm = {"top_k": 2, "lexical": {"dim": 256}}
    model = model_of(CONFIGS["llama"], FIRST_TIERS[name] | {"longterm": longterm}, reads=True)
    known = json.loads((folder / "manifest.json").read_text())["info"]["fingerprint"]
    model.fingerprint = lambda policy=None: known  # which is of other versions of the libraries
    return remembered(model, folder)


def earlier_format(version: int) -> Figures:
    """A saved model of an earlier format and its memory."""
    _need_adapters()
    with scratch() as folder:
        shutil.copytree(DATA / f"saved-{version}" / "model", folder / "model")
        path = folder / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"backbone": str(OLD / "backbone")}))
        model = HierMemModel.from_pretrained(folder / "model", dtype="float32", device="cpu")
    figures, ids = remembered(model, DATA / f"saved-{version}" / "memory"), ids_of(90)
    with torch.no_grad():
        return figures | {"told": told(model(ids).logits, ids)}


def _need_adapters() -> None:
    add_adapter(model_of(CONFIGS["llama"], ATTENTION))


def remembered(model: HierMemModel, folder: Path) -> Figures:
    """Answers of a memory, before and after it has read more, and what is in it then."""
    memory = MemoryState.load(folder, model)
    figures: Figures = {"text": memory.text, "tokens": memory.tokens, "segments": memory.segments}
    figures["answers"] = answers(model, memory)
    memory = model.read(MORE, memory, progress=False)
    figures["later"] = answers(model, memory)
    with scratch() as again:
        memory.save(again / "memory")
        figures["contents"] = contents(again / "memory")
    return figures


def answers(
    model: HierMemModel, memory: MemoryState, questions: tuple[str, ...] = QUESTIONS, length: int = 12
) -> list[Any]:
    """Answers of at most ``length`` tokens, with their sources."""
    made = [(question, model.ask(memory, question, max_new_tokens=length)) for question in questions]
    return [
        {
            "question": question,
            "answer": answer.text,
            "found": answer.found,
            "complete": answer.complete,
            "sources": [
                {"segment": s.segment, "start": s.start, "end": s.end, "score": s.score, "text": s.text}
                for s in answer.sources
            ],
        }
        for question, answer in made
    ]


def contents(folder: Path) -> list[Any]:
    """Of each tensor of a saved memory dtype, shape, norm and a direction, whatever it is called."""
    found = []
    for file in sorted(folder.glob("*.safetensors")):
        for tensor in load_file(file).values():
            flat = tensor.double().flatten()
            weights = (torch.arange(flat.numel()) % 7 - 3).double()
            norms = float(flat.norm()), float(weights.norm())
            cosine = float(flat @ weights) / (norms[0] * norms[1] or 1)
            found.append([str(tensor.dtype), list(tensor.shape), norms[0], cosine])
    return sorted(found)


# ---- evaluation

COMMANDS = {
    "passkey": "eval passkey --haystack BOOK --model plain --lengths 100,200 --limit 2",
    "passkey, closed": "eval passkey --haystack BOOK --model plain --lengths 100 --limit 1 --system closed",
    "needles": "eval needles --data BOOK --model plain --length 200 --limit 2 --positions absolute",
    "needles, recall": "eval needles --data BOOK --model embeddings --length 200 --limit 2 --system hiermem",
    "babi-long": "eval babi-long --haystack BOOK --model mamba --lengths 0,700 --limit 1 --stories 1",
    "pg19": "eval pg19 --data BOOK --model shares --max-tokens 600",
    "pg19, window": "eval pg19 --data BOOK --model plain --max-tokens 300 --window 40 --overlap 5",
    "interleaved": "eval interleaved --data BOOKS --model published --segments 4",
    "retrieval": "eval retrieval --data ABSTRACTS --model embeddings",
    "pubmedqa": "eval pubmedqa --data ABSTRACTS --model embeddings --together 3 --limit 3",
}
"""With the folder of a saved model for its name."""


def evaluation() -> Figures:
    """Figures of every task, by its command.

    Raises:
        Unavailable: there is no BM25 to compare with.
    """
    if not find_spec("rank_bm25"):
        raise Unavailable("retrieval is compared with rank-bm25")
    with scratch() as folder:
        places = write_texts(folder)
        figures = {}
        for name, command in COMMANDS.items():
            words = [places.get(word, word) for word in command.split()]
            report = result(*words, "--dtype", "float32", "--device", "cpu")
            figures[name] = {part: report[part] for part in ("n", "metrics", "rows") if part in report}
        return figures


def write_texts(folder: Path) -> dict[str, str]:
    """Books and abstracts; where what the commands name is."""
    (folder / "books" / "test").mkdir(parents=True)
    for seed in (3, 4):
        prose = text_of(900, seed).replace(" and ", ". ")
        (folder / "books" / "test" / f"{seed}.txt").write_text(prose, "utf-8")
    topics = ("aspirin", "insulin", "malaria", "asthma", "vitamins", "sleep")
    decisions = ("yes", "no", "maybe")
    known = {
        str(at): {
            "QUESTION": f"Does {topic} help the captain of the ship?",
            "CONTEXTS": [f"We studied {topic} in {20 + at} men. " + text_of(20, seed=at)],
            "LONG_ANSWER": f"What we know of {topic} says so.",
            "final_decision": decisions[at % 3],
        }
        for at, topic in enumerate(topics)
    }
    (folder / "abstracts").mkdir()
    (folder / "abstracts" / "ori_pqal.json").write_text(json.dumps(known))
    truth = {at: known[at]["final_decision"] for at in known}
    (folder / "abstracts" / "test_ground_truth.json").write_text(json.dumps(truth))
    names = {"BOOK": "books/test/3.txt", "BOOKS": "books", "ABSTRACTS": "abstracts"}
    models = {name: str(SAVED / name / "model") for name in SAVED_TIERS}
    return models | {name: str(folder / place) for name, place in names.items()}


# ---- the real model

DEMO = {
    "What does the assert statement do?": "assert",
    "What is an Ellipsis literal?": "bltin-ellipsis-object",
    "When is the else clause of a loop executed?": "while",
}
"""The demo's questions, and the topics that answer them."""
OTHERS = ("bltin-null-object", "break", "pass")


def real() -> Figures:
    """Answers of the bundled model from some topics of the demo's document, in float32.

    Raises:
        Unavailable: the bundled model or the document is not here.
    """
    try:
        from pydoc_data.topics import topics

        config = HierMemConfig.preset("full", segment=128, chunk=128)
        model = HierMemModel.from_pretrained("smollm2", config, dtype="float32", device="cpu")
    except (ImportError, HierMemError) as error:
        raise Unavailable(str(error)) from error
    text = "\n\n".join(f"# {name}\n\n{topics[name].strip()}" for name in sorted((*DEMO.values(), *OTHERS)))
    memory = model.read(text, progress=False)
    figures: Figures = {"text": crc32(text.encode()), "tokens": memory.tokens}
    return figures | {"answers": answers(model, memory, tuple(DEMO), length=24)}


def demo() -> Figures:
    """What the demo prints, of which wording is of a processor and a number of threads."""
    report = result("demo")
    return {"tokens": report["tokens"], "answers": report["answers"]}
