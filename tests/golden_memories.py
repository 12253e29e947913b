"""Figures of saved models and memories, answers and evaluations: see `golden.py`."""

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from commands import result
from families import CONFIGS
from golden_figures import (
    ATTENTION,
    DATA,
    EMBEDDINGS,
    FORGET,
    HALF,
    MAMBA,
    NAMM,
    OLD,
    SHARES,
    WINDOW,
    Figures,
    Parts,
    Unavailable,
    add_adapter,
    ids_of,
    model_of,
    told,
    working,
)
from safetensors.torch import load_file
from stories import write_stories
from transformers import AutoConfig

from hiermem import HierMemConfig, HierMemError, HierMemModel, MemoryState
from hiermem.retrieval.encoder import has_minilm

SAVED = DATA / "golden" / "saved"

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
    model.fingerprint = lambda *_, **__: known  # which is of other versions of the libraries
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
    "babi-long": "eval babi-long --haystack BOOK --data STORIES --model mamba --tasks 1,19 --lengths 0,700 "
    "--limit 2",
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
    write_stories(folder / "stories")
    names = {"BOOK": "books/test/3.txt", "BOOKS": "books", "ABSTRACTS": "abstracts", "STORIES": "stories"}
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
        Unavailable: the bundled model, its sentence encoder or the document is not here.
    """
    if not has_minilm():
        raise Unavailable("all-MiniLM-L6-v2 is not installed")
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
