"""`hiermem read`: a document becomes a memory on disk, and stays one whatever happens meanwhile."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli.reading_task import ONLY_INDEXED, Task, appending, holds_memory, resumed, with_defaults_of
from hiermem.cli.signals import Stop, stoppable
from hiermem.documents import open_named
from hiermem.errors import InputError, MemoryFileError
from hiermem.progress import say
from hiermem.resources import peak_rss_bytes

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="longterm.NAME=VALUE",
        help='The search keys, such as longterm.keys={"lexical": {}}; a tier beside the records, such as '
        "longterm.tiers.kv={}; or a setting of one, such as longterm.tiers.kv.keep=0.1; repeatable.",
    ),
]
_SETTABLE = ("longterm.keys", "longterm.tiers")
_OF_UNITS = 64  # bytes a token: embeddings of 384 numbers, of sentences of 24 tokens and more


def read(
    doc: opt.Document,
    out: Annotated[Path, typer.Option(help="Folder to keep the memory in.")],
    append: Annotated[bool, typer.Option(help="Read DOC after what the memory at --out holds.")] = False,
    index: Annotated[
        bool, typer.Option("--index", help="Leave the backbone out: much faster, but no working memory.")
    ] = False,
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
    evictor: opt.EvictorName = None,
    settings: Settings = None,
    dtype: opt.Dtype = None,
    quantize: opt.Quantize = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Read a document into a memory on disk.

    Stopped by Ctrl-C, SIGTERM or SIGHUP, it saves what it has read, and every few minutes anyway; the same
    command goes on from there. With --append, the memory stays as it was until the whole addition has been
    read.

    With --index, records and search keys are all that is made. By default nothing else is asked for, so the
    answers are the same; the working memory and further tiers are missing.

    Examples:

        hiermem read book.txt --out book.hmem

        cat notes.txt | hiermem read - --out book.hmem --append

        hiermem read python-reference --out ref.hmem --policy window --budget 1024

        hiermem read book.txt --out book.hmem --index

        hiermem read book.txt --out book.hmem --set 'longterm.keys={"lexical": {}}'

        hiermem read book.txt --out book.hmem --set longterm.tiers.kv.keep=0.1
    """
    from hiermem.cli.assignments import sets, with_used_settings
    from hiermem.eviction_weights import SHIPPED
    from hiermem.loading import saved_model
    from hiermem.retrieval.files import check_target, only_writer

    config = opt.configuration(
        model, preset, policy, budget, segment, chunk, positions, evictor=evictor, policy_set=policy_set
    )
    config = with_used_settings(config, settings or [], _SETTABLE)
    opt.check_numbers(dtype, device)
    check_target(out)
    if index and sets(settings or [], "longterm.keys") and config.longterm.has_states:
        raise InputError(
            "An index has no search key states, which is made while the backbone reads: leave that key out "
            "of longterm.keys, or --index."
        )
    if saved_model(model) is None:
        chosen = preset is not None or sets(settings or [], "longterm.keys")
        shares = evictor is None and config.evictor == SHIPPED
        config = with_defaults_of(out, config, keys=not chosen, shares=shares)
    document = open_named(doc)
    with only_writer(out):
        _check_room(out, 1 << 20)
        reader = opt.load_model(model, config, dtype, device, quantize)
        with stoppable() as stop:
            task = (appending if append else resumed)(reader, out, document, index)
            start = time.perf_counter()
            _read_and_keep(reader, task, save_every, stop)
            _report(task, time.perf_counter() - start, json)


def _read_and_keep(reader: "HierMemModel", task: Task, save_every: float, stop: Stop) -> None:
    """Read the rest; save the memory every few minutes, on a stop by a signal, and at the end."""
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
            if task.saved and holds_memory(task.meanwhile):
                say(f"hiermem: going on after {task.saved} tokens.")
            task.go_on(reader, checkpoint)
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
    """Save the memory meanwhile; the outcome in a sentence. A save that fails now may succeed later."""
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
    most = 0 if task.index else tokens if keeps_all else working.budget + working.update_interval
    cache = sum(
        2 * shape.heads * shape.width * number + 12 * shape.heads for shape in reader.adapter.geometries
    )
    tiers = sum(tier.expected_bytes(tokens, memory.moment.working.cache) for tier in memory.tiers)
    units = 0 if memory.longterm.units is None else tokens * _OF_UNITS
    return min(most, tokens) * cache + tokens // memory.segment * width * 4 + units + 3 * characters + tiers


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
    """Print figures of a finished reading."""
    from hiermem.memory.state import MemoryState

    memory, tokens = task.memory, task.memory.tokens - task.before
    working = memory.moment.working
    peak, mean = working.frames.counts.peak_tokens, working.cache.mean_tokens
    result: dict[str, Any] = {
        "tokens": memory.tokens,
        "segments": memory.segments,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if tokens else 0.0,
        "peak_rss_bytes": peak_rss_bytes(),
        "live_tokens_max": peak,
        "memory_bytes": memory.nbytes,
        "memory_bytes_per_token": MemoryState.bytes_per_token(task.out),
        "new_tokens": tokens,
        "indexed": memory.indexed,
        "out": str(task.out),
    }
    live = "" if task.index else f", {mean:.0f} of them live per KV head (mean; at most {peak})"
    done = "Indexed" if task.index else "Read"
    words = (
        f"{done} {tokens} tokens in {seconds:.1f} s ({result['tokens_per_second']:.0f} a second); "
        f"the memory at {task.out} holds {memory.tokens} tokens in {_segments(memory.segments)}{live}. "
        f"It takes {result['memory_bytes_per_token']:.0f} bytes a token. "
        f"Peak memory {opt.mib(peak_rss_bytes())}."
    )
    opt.emit(result, json, f"{words} {ONLY_INDEXED}" if task.index else words)


def _segments(number: int) -> str:
    return f"{number} segment" + ("" if number == 1 else "s")
