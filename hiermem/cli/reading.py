"""`hiermem read`: a document becomes a memory on disk, and stays one whatever happens meanwhile."""

import secrets
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli.signals import Stop, stoppable
from hiermem.errors import InputError, MemoryFileError, MemoryMissingError
from hiermem.progress import say
from hiermem.resources import peak_rss_bytes

if TYPE_CHECKING:
    from hiermem.memory.state import MemoryState
    from hiermem.model import HierMemModel

ADDITION = "addition"
"""Folder within a memory's own that holds an addition which was stopped, with the memory before it."""


def read(
    doc: opt.Document,
    out: Annotated[Path, typer.Option(help="Folder to keep the memory in.")],
    append: Annotated[bool, typer.Option(help="Read DOC after what the memory at --out holds.")] = False,
    save_every: Annotated[
        float,
        typer.Option(
            min=0.0, metavar="MINUTES", help="Save what was read every so many minutes; 0: only at the end."
        ),
    ] = 5.0,
    model: opt.Model = "smollm2",
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
    budget: opt.Budget = None,
    segment: opt.Segment = None,
    chunk: opt.Chunk = None,
    positions: opt.Positions = None,
    evictor: opt.EvictorName = "auto",
    dtype: opt.Dtype = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Read a document into a memory on disk.

    Stopped by Ctrl-C, SIGTERM or SIGHUP, it saves what it has read, and every few minutes anyway; the same
    command goes on from there. With --append, the memory stays as it was until the whole addition has been
    read.

    Examples:

        hiermem read book.txt --out book.hmem

        cat notes.txt | hiermem read - --out book.hmem --append

        hiermem read python-reference --out ref.hmem --policy window --budget 1024
    """
    from hiermem.retrieval.files import check_target, only_writer

    config = opt.configuration(
        model, preset, policy, budget, segment, chunk, positions, evictor=evictor, policy_set=policy_set
    )
    opt.check_numbers(dtype, device)
    check_target(out)
    text = opt.read_document(doc)
    with only_writer(out):
        _check_room(out, 1 << 20)
        reader = opt.load_model(model, config, dtype, device)
        with stoppable() as stop:
            task = _appending(reader, out, text) if append else _placed(reader, out, text)
            start = time.perf_counter()
            _read_and_keep(reader, task, save_every, stop)
            _report(task, time.perf_counter() - start, json)


@dataclass
class Task:
    """What is still to be read, into what, and where that is kept.

    Attributes:
        memory: what was read so far.
        rest: what follows; empty where all was read.
        out: folder of the memory once all was read.
        meanwhile: folder of the memory until then.
        before: tokens of the memory when the command began.
        saved: tokens of the memory that is on disk.
    """

    memory: "MemoryState"
    rest: str
    out: Path
    meanwhile: Path
    before: int = field(init=False)
    saved: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = self.saved = self.memory.tokens

    def keep(self) -> None:
        """Save what was read so far, if that is more than was saved."""
        if self.memory.tokens > self.saved:
            self.memory.save(self.meanwhile)
            self.saved = self.memory.tokens

    def finish(self) -> None:
        """Save the whole memory, where it belongs."""
        self.memory.save(self.out)
        self.saved = self.memory.tokens
        if self.meanwhile != self.out and _holds_memory(self.meanwhile):
            gone = self.out / f".{ADDITION}-{secrets.token_hex(8)}"
            self.meanwhile.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


def _holds_memory(folder: Path) -> bool:
    from hiermem.memory.state import MemoryState

    try:
        MemoryState.read_with(folder)
    except MemoryFileError:
        return False
    return True


def _placed(reader: "HierMemModel", out: Path, text: str) -> Task:
    """Read on where an earlier command stopped, or begin."""
    from hiermem.memory.state import MemoryState

    try:
        memory = MemoryState.load(out, reader)
    except MemoryMissingError:
        return Task(reader.new_memory(), text, out, out)
    _check_settings(reader, memory, out)
    known = memory.text
    if known != text and known.startswith(text):
        raise InputError(
            f"The memory at {out} holds this text and more after it: there is nothing to read, or give a new "
            f"folder to --out."
        )
    if not text.startswith(known):
        raise InputError(
            f"The memory at {out} is of another text: give a new folder to --out, or --append to read on in "
            f"it."
        )
    return Task(memory, text[len(known) :], out, out)


def _appending(reader: "HierMemModel", out: Path, text: str) -> Task:
    """Read after a memory, or go on where an earlier command did so and was stopped."""
    from hiermem.memory.state import MemoryState
    from hiermem.retrieval.files import check_target
    from hiermem.text import separated

    memory, meanwhile = MemoryState.load(out, reader), out / ADDITION
    _check_settings(reader, memory, out)
    if meanwhile.is_symlink():
        raise InputError(f"{meanwhile} is a link, and an addition stays in its memory's folder: remove it.")
    check_target(meanwhile)
    try:
        begun = MemoryState.load(meanwhile, reader)
    except MemoryMissingError:
        return Task(memory, separated(memory.last_characters(2), text), out, meanwhile)
    _check_settings(reader, begun, meanwhile)
    before, known = memory.text, begun.text
    if before.startswith(known) and before.endswith(text) and len(before) < len(known) + len(text):
        return Task(memory, "", out, meanwhile)  # stopped when all was in its place
    text = separated(before, text)  # words of two texts are not to run into one another
    if known.startswith(before) and text.startswith(known[len(before) :]):
        return Task(begun, text[len(known) - len(before) :], out, meanwhile)
    raise InputError(
        f"The folder {meanwhile} holds another addition, which was stopped: go on with that one first, or "
        f"delete the folder."
    )


def _check_settings(reader: "HierMemModel", memory: "MemoryState", place: Path) -> None:
    wanted = reader.config
    if (memory.working.config, memory.segment) != (wanted.working, wanted.segment):
        raise InputError(
            f"The memory at {place} was read with other settings: leave --policy, --policy-set, --budget, "
            f"--segment, --chunk, --positions, --evictor and --preset as they were, or give a new folder to "
            f"--out."
        )


def _read_and_keep(reader: "HierMemModel", task: Task, save_every: float, stop: Stop) -> None:
    """Read the rest; what was read is saved every few minutes, when a signal stops it, and at the end."""
    saved_at = time.monotonic()

    def checkpoint() -> None:
        nonlocal saved_at
        stop.check()
        if save_every and time.monotonic() - saved_at > 60 * save_every:
            with stop.held():
                say(f"hiermem: {_kept(task)}")
            saved_at = time.monotonic()

    try:
        if task.rest:
            _check_room(task.out, _final_size(reader, task))
            if task.saved and _holds_memory(task.meanwhile):
                say(f"hiermem: going on after {task.saved} tokens.")
            reader.read(task.rest, task.memory, checkpoint=checkpoint)
        with stop.held():
            task.finish()
            stop.done()
    except MemoryFileError:  # what cannot be saved now cannot be saved again
        raise
    except BaseException:
        with stop.held():
            task.keep()
            if task.saved:
                say(f"hiermem: stopped after {task.saved} tokens; the same command goes on.")
        raise


def _kept(task: Task) -> str:
    """Save meanwhile, and say so; what cannot be saved now may be later."""
    try:
        task.keep()
    except MemoryFileError as error:
        return f"{error} Reading goes on."
    return f"saved after {task.saved} tokens."


def _final_size(reader: "HierMemModel", task: Task) -> int:
    """About how many bytes the memory's files will have in the end."""
    from hiermem.memory.policies import FullCachePolicy

    config, memory = reader.config, task.memory
    characters = memory.characters + len(task.rest)
    tokens, width = characters // 3, memory.longterm.store.dim
    working, number = config.working, reader.dtype.itemsize
    keeps_all = working.policy == FullCachePolicy.name
    live = tokens if keeps_all else min(working.budget + working.update_interval, tokens)
    cache = sum(2 * shape.heads * shape.width * number + 12 * shape.heads for shape in reader.adapter.shapes)
    return live * cache + tokens // memory.segment * width * 4 + 3 * characters


def _check_room(out: Path, size: int) -> None:
    """Find out before reading whether the memory can be saved.

    Raises:
        MemoryFileError: it cannot.
    """
    from hiermem.retrieval.disk import check_room

    try:
        check_room(out, size)
    except OSError as error:
        raise MemoryFileError(
            f"A memory of about {opt.mib(size)} cannot be saved at {out} ({error.strerror or error}): make "
            f"room, or give another folder to --out."
        ) from error


def _report(task: Task, seconds: float, json: bool) -> None:
    memory, tokens = task.memory, task.memory.tokens - task.before
    result: dict[str, Any] = {
        "tokens": memory.tokens,
        "segments": memory.segments,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens else 0.0,
        "peak_rss_bytes": peak_rss_bytes(),
        "live_tokens_max": memory.working.frames.peak_tokens,
        "memory_bytes": memory.nbytes,
        "new_tokens": tokens,
        "out": str(task.out),
    }
    words = (
        f"Read {tokens} tokens in {seconds:.1f} s ({result['tokens_per_second']:.0f} a second); "
        f"the memory at {task.out} holds {memory.tokens} tokens in {memory.segments} segments, at most "
        f"{memory.working.frames.peak_tokens} of them live per KV head. "
        f"Peak memory {opt.mib(peak_rss_bytes())}."
    )
    opt.emit(result, json, words)
