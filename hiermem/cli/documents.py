"""`hiermem ask`, `verify` and `demo`: a memory answers."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.errors import InputError, MemoryMissingError
from hiermem.resources import peak_rss_bytes

if TYPE_CHECKING:
    from hiermem.asking import Answer
    from hiermem.memory.working_config import WorkingMemoryConfig

MemoryDir = Annotated[Path, typer.Argument(help="Folder of a saved memory.")]
ReadModel = Annotated[
    str | None,
    typer.Option(help="Model that read the memory; default: the one that it names, if that is bundled."),
]
ReadEvictor = Annotated[
    str | None, typer.Option(help="As the memory was read with; default: the model's own.")
]
ReadDtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: that of the memory.")
]


def ask(
    memory_dir: MemoryDir,
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    model: ReadModel = None,
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
    evictor: ReadEvictor = None,
    top_k: opt.TopK = None,
    rerank: opt.Rerank = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of the answer in tokens.")] = 64,
    dtype: ReadDtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Answer a question from a saved memory, with sources.

    A memory that was read with a --preset, --policy, --policy-set or --evictor is asked with the same ones.

    Examples:

        hiermem ask book.hmem "Who is the captain?"

        hiermem ask ref.hmem "What does the with statement do?" --top-k 2 --json

        hiermem ask book.hmem "Who is the captain?" --top-k 1 --rerank 5
    """
    from hiermem.memory.state import MemoryState

    if not question.strip():
        raise InputError("The question is empty: ask something.")
    if max_new_tokens < 1 or (top_k is not None and top_k < 0):
        raise InputError("--max-new-tokens must be at least 1 and --top-k not negative.")
    if not memory_dir.is_dir():  # before the model is loaded
        raise MemoryMissingError(f"There is no memory at {memory_dir}: check the path, or read a text first.")
    opt.check_numbers(dtype, device)
    name, saved_dtype = MemoryState.read_with(memory_dir)
    chosen = model or _named_model(memory_dir, name)
    config = opt.configuration(chosen, preset, policy, evictor=evictor, policy_set=policy_set)
    reader = opt.load_model(chosen, config, dtype or saved_dtype or None, device)
    reader.config.asking = opt.reranking(reader.config, rerank).asking
    memory = MemoryState.load(memory_dir, reader)
    if preset or policy or policy_set:
        _check_policy(memory_dir, memory.working.config, reader.config.working)
    start = time.perf_counter()
    answer = reader.ask(memory, question, top_k=top_k, max_new_tokens=max_new_tokens)
    seconds = time.perf_counter() - start
    opt.emit(_result(answer) | {"complete": answer.complete, "seconds": seconds}, json, _words(answer))


def _check_policy(memory_dir: Path, read_with: "WorkingMemoryConfig", chosen: "WorkingMemoryConfig") -> None:
    """Refuse a policy on the command line that is not the memory's own, which it goes on with.

    Raises:
        InputError: so it is.
    """
    if read_with.policy != chosen.policy:
        raise InputError(
            f"The memory at {memory_dir} was read with the policy {read_with.policy}, not {chosen.policy}: "
            f"leave --preset and --policy as they were when it was read."
        )
    if read_with.policy_settings != chosen.policy_settings:
        raise InputError(
            f"The memory at {memory_dir} was read with other settings of the policy {read_with.policy}: "
            f"leave --policy-set as it was when it was read."
        )


def _named_model(memory_dir: Path, name: str) -> str:
    """The model that a memory names, if that comes with hiermem.

    Raises:
        InputError: it does not; a stranger's memory could bring its own model along.
    """
    from hiermem.loading import bundled_models

    name, why = name or "smollm2", "which does not come with hiermem"
    if name in bundled_models():
        if not Path(name).exists():
            return name
        why = "and a folder here is called so too"
    raise InputError(
        f"The memory at {memory_dir} says that it was read with the model {name!r}, {why}: "
        f"give the model by --model if you trust it."
    )


def verify(memory_dir: MemoryDir, json: opt.Json = False) -> None:
    """Check every file of a saved memory; exit status 1 if something is wrong.

    Example:

        hiermem verify book.hmem
    """
    from hiermem.memory.state import MemoryState

    problems = MemoryState.verify(memory_dir)
    words = "\n".join(problems)
    if not problems:
        size = MemoryState.bytes_per_token(memory_dir)
        words = f"{memory_dir} is sound and takes {size:.0f} bytes a token."
    opt.emit({"ok": not problems, "problems": problems}, json, words)
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
        f"with at most {memory.working.frames.counts.peak_tokens} live per KV head; the backbone was trained "
        f"on {reader.adapter.trained_range}. Peak memory {opt.mib(peak_rss_bytes())}."
    )
    answers = [(question, reader.ask(memory, question)) for question in DEMO_QUESTIONS]
    rows = [{"question": question, **_result(answer)} for question, answer in answers]
    words = "\n\n".join([intro, *(f"{question}\n{_words(answer)}" for question, answer in answers)])
    opt.emit({"tokens": memory.tokens, "seconds": seconds, "answers": rows}, json, words)


def _result(answer: "Answer") -> dict[str, Any]:
    """An answer and its sources as JSON has them."""
    sources = [vars(source) for source in answer.sources]
    return {"answer": answer.text, "found": answer.found, "sources": sources}


def _words(answer: "Answer") -> str:
    """An answer and its sources for a person to read."""
    from hiermem.asking import NOT_FOUND

    text = "\n  ".join(line for line in answer.text.splitlines() if line.strip())
    lines = [f"→ {text}" + ("" if answer.complete else " …")]
    if not answer.found and answer.text != NOT_FOUND:
        lines.append("  The document has no word of the question: the model answers by itself.")
    for source in answer.sources:
        excerpt = " ".join(source.text.split())
        excerpt = excerpt if len(excerpt) <= 300 else excerpt[:297] + "…"
        lines.append(
            f"  [segment {source.segment}, characters {source.start} to {source.end}, "
            f"score {source.score:.2f}] {excerpt}"
        )
    return "\n".join(lines)
