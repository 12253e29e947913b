"""`hiermem verify` and `demo`: a memory checked, and one shown."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.cli.answers import as_json, in_words
from hiermem.cli.reading_task import ONLY_INDEXED
from hiermem.resources import peak_rss_bytes


def verify(
    memory_dir: Annotated[Path, typer.Argument(help="Folder of a saved memory, or of a library.")],
    json: opt.Json = False,
) -> None:
    """Check every file of a saved memory or a library; exit status 1 if something is wrong.

    Example:

        hiermem verify book.hmem
    """
    from hiermem.library.catalogue import Catalogue, is_library
    from hiermem.library.shelves import Shelves
    from hiermem.memory.state import MemoryState

    if is_library(memory_dir):
        catalogue = Catalogue(memory_dir)
        problems = Shelves(memory_dir, catalogue).verify()
        sound = f"The library at {memory_dir} is sound: {len(catalogue.documents())} documents."
        opt.emit({"ok": not problems, "problems": problems}, json, "\n".join(problems) or sound)
        if problems:
            raise typer.Exit(1)
        return
    problems = MemoryState.verify(memory_dir)
    indexed, words = not problems and MemoryState.was_indexed(memory_dir), "\n".join(problems)
    if not problems:
        size = MemoryState.bytes_per_token(memory_dir)
        words = f"{memory_dir} is sound and takes {size:.0f} bytes a token."
    said = f"{words} {ONLY_INDEXED}" if indexed else words
    opt.emit({"ok": not problems, "problems": problems, "indexed": indexed}, json, said)
    if problems:
        raise typer.Exit(1)


DEMO_QUESTIONS = (
    "What does the assert statement do?",
    "What is an Ellipsis literal?",
    "When is the else clause of a loop executed?",
)


def demo(model: opt.Model = "smollm2", json: opt.Json = False) -> None:
    """Read the whole reference of the Python language and ask it three questions.

    Example:

        hiermem demo
    """
    text = opt.read_document("python-reference")
    reader = opt.load_model(model, opt.configuration(model, "full"), None, None)
    if not sys.stderr.isatty():  # where a terminal has a progress bar
        sys.stderr.write("hiermem: reading the reference of the Python language, for some minutes.\n")
    start = time.perf_counter()
    memory = reader.read(text)
    seconds = time.perf_counter() - start
    intro = (
        f"Read {memory.tokens} tokens in {seconds:.0f} s ({memory.tokens / seconds:.0f} a second) "
        f"with {memory.working.cache.mean_tokens:.0f} live per KV head (mean); the backbone was trained on "
        f"{reader.adapter.trained_range}. Peak memory {opt.mib(peak_rss_bytes())}."
    )
    answers = [(question, reader.ask(memory, question)) for question in DEMO_QUESTIONS]
    rows = [{"question": question, **as_json(answer)} for question, answer in answers]
    words = "\n\n".join([intro, *(f"{question}\n{in_words(answer)}" for question, answer in answers)])
    opt.emit({"tokens": memory.tokens, "seconds": seconds, "answers": rows}, json, words)
