"""Options that several commands share, and the model they describe."""

import os
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli.terminal import emit as emit
from hiermem.documents import read_document as read_document
from hiermem.errors import InputError
from hiermem.memory.policy_names import POLICY_NAMES

if TYPE_CHECKING:
    import torch

    from hiermem.config import HierMemConfig
    from hiermem.memory.working_config import WorkingMemoryConfig
    from hiermem.model import HierMemModel


def checked_document(doc: str | None) -> str | None:
    """The name of a document, if one is given, refused where it cannot be read: before a command imports what
    takes seconds.

    Raises:
        InputError: it is missing, empty or not a UTF-8 text.
    """
    if doc is None:
        return None
    can_be_read_again = os.path.isfile(doc) or os.path.isdir(doc) or not os.path.exists(doc)
    if doc != "-" and can_be_read_again:
        read_document(doc)
    return doc


def checked_documents(docs: list[str]) -> list[str]:
    """The same of several."""
    for doc in docs:
        checked_document(doc)
    return docs


Document = Annotated[
    str,
    typer.Argument(
        help="A UTF-8 text file, - for standard input, or python-reference.", callback=checked_document
    ),
]
MemoryDir = Annotated[Path, typer.Argument(help="Folder of a saved memory.")]
Model = Annotated[str, typer.Option(help="Hub id or folder of a model, a GGUF file, or smollm2 (bundled).")]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Named configuration: full (default for a plain backbone), streaming, namm, hmt or bare."
    ),
]
Policy = Annotated[
    str | None,
    typer.Option(help=f"What the working memory keeps: {', '.join(POLICY_NAMES)}."),
]
PolicySet = Annotated[
    list[str] | None,
    typer.Option(
        "--policy-set", metavar="NAME=VALUE", help="A setting of the policy, such as decay=0.99; repeatable."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PART.NAME=VALUE",
        help="A setting of the configuration, such as summary.tokens=0 or longterm.top_k=0; repeatable.",
    ),
]
Budget = Annotated[int | None, typer.Option(min=1, help="Live tokens per KV head after each decision.")]
Segment = Annotated[
    int | None, typer.Option(min=1, help="Tokens per long-term record; a multiple of --chunk.")
]
Chunk = Annotated[int | None, typer.Option(min=1, help="Tokens read at once, and between two evictions.")]
Positions = Annotated[str | None, typer.Option(help="Positions of old tokens: distance, absolute, compact.")]
TopK = Annotated[int | None, typer.Option("--top-k", min=0, help="Segments to recall for a question.")]
Rerank = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Rerank so many of the best segments, more than --top-k, by the likelihood of the question "
        "after each, where scores are close; default: the model's own, 0 (off).",
    ),
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; default: the model's own.")]
Quantize = Annotated[
    str | None,
    typer.Option(
        help="Weights of the backbone in fewer bits: float16 (x86 processors; computes in float32), int8, or "
        "on a GPU int4 (extra quantize)."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")]
EvictorName = Annotated[
    str | None,
    typer.Option(
        "--evictor",
        help="Head shares and what policies score with: auto (those of the model, for the policies namm and "
        "linear), shipped (for attention, too; the default of the preset full), none, smollm2, or a folder "
        "from calibrate (namm then scores with the network that ships) or evolve.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")]
Data = Annotated[Path, typer.Option(help="Folder or file with the data, or its name on the hub.")]
Trainable = Annotated[
    Path,
    typer.Option(
        help="Folder with pg19, pubmedqa, nq or xquad in their official layouts, as the recipe needs; books "
        "alone also by a name on the hub."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Keep the result in this JSON file; a run that was stopped goes on from its parts."),
]
IndexOrRead = Annotated[
    bool | None,
    typer.Option(
        "--index/--read",
        help="Of a new library: leave the backbone out, which is much faster, or let it read every "
        "document; default: --index where no search key or tier is made by it.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

DTYPES = ("float32", "bfloat16", "float16")

TRUST_REMOTE_CODE: ContextVar[bool] = ContextVar("trust_remote_code", default=False)
"""Whether `hiermem --trust-remote-code COMMAND` was called."""


def configuration(
    model: str,
    preset: str | None,
    policy: str | None = None,
    budget: int | None = None,
    segment: int | None = None,
    chunk: int | None = None,
    positions: str | None = None,
    top_k: int | None = None,
    evictor: str | None = None,
    policy_set: Sequence[str] | None = None,
) -> "HierMemConfig":
    """The preset, or a saved model's own settings, with what was given on the command line in its place.

    Raises:
        InputError: there is no such preset, policy or setting, or a value is refused.
    """
    from hiermem.config import HierMemConfig
    from hiermem.eviction_weights import AUTO, SHIPPED
    from hiermem.loading import saved_model

    saved = None if (folder := saved_model(model)) is None else HierMemConfig.from_saved(folder)
    if preset is None and saved is not None:
        config = saved
    else:
        config = HierMemConfig.preset(preset or "full")
        config = config if saved is None else config.with_parts_of(saved)
    changes: dict[str, Any] = {"budget": budget, "positions": positions, "update_interval": chunk}
    working = replace(config.working, **{name: v for name, v in changes.items() if v is not None})
    working = _with_policy(working, policy, policy_set or ())
    if chunk is None:
        chunk = config.chunk if segment is None else _chunk_of(segment, config.chunk)
    if segment is None:
        segment = -(-config.segment // chunk) * chunk
    longterm = config.longterm if top_k is None else replace(config.longterm, top_k=top_k)
    if evictor is None:
        evictor = SHIPPED if config.evictor == SHIPPED else AUTO
    settings = {"working": working, "longterm": longterm, "chunk": chunk, "segment": segment}
    settings["evictor"] = evictor
    return HierMemConfig(**{**config.settings(), **settings})


def _with_policy(
    working: "WorkingMemoryConfig", policy: str | None, assignments: Sequence[str]
) -> "WorkingMemoryConfig":
    """The same settings with the policy and its settings of the command line; others of the same policy stay.

    Raises:
        InputError: there is no such policy or setting, or a value is refused.
    """
    from hiermem.memory.policies import POLICIES

    name = working.policy if policy is None else POLICIES.canonical(policy)
    settings = working.policy_settings if name == working.policy else {}
    return working.with_policy(name, **{**settings, **POLICIES.parse(name, assignments, "--policy-set")})


def _chunk_of(segment: int, usual: int) -> int:
    """The largest chunk up to the usual one that divides a segment.

    Raises:
        InputError: it would be less than a quarter of that.
    """
    most = min(segment, usual)
    chunk = next(size for size in range(most, 0, -1) if segment % size == 0)
    if 4 * chunk < most:
        raise InputError(
            f"A segment of {segment} tokens would be read in chunks of {chunk}, which is slow: give "
            f"--segment {-(-segment // usual) * usual}, or a --chunk that divides it."
        )
    return chunk


def reranking(config: "HierMemConfig", rerank: int | None) -> "HierMemConfig":
    """The same configuration with another number of segments that are reranked, if one is given."""
    return config if rerank is None else config.with_asking(rerank=rerank)


def load_model(
    name: str,
    config: "HierMemConfig | None",
    dtype: str | None,
    device: str | None,
    quantize: str | None = None,
) -> "HierMemModel":
    """The model of the command line's options.

    Raises:
        InputError: no such model, dtype, device or quantization.
    """
    import torch

    from hiermem.model import HierMemModel
    from hiermem.quantization import quantization_config

    where = check_numbers(dtype, device)
    options = {} if quantize is None else {"quantization_config": quantization_config(quantize, where)}
    return HierMemModel.from_pretrained(
        name,
        config,
        dtype=getattr(torch, dtype) if dtype else None,
        device=where,
        trust_remote_code=TRUST_REMOTE_CODE.get(),
        **options,
    )


def check_numbers(dtype: str | None, device: str | None) -> "torch.device":
    """The device, before anything is loaded, which goes on quietly.

    Raises:
        InputError: there is no such dtype or device.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"There is no dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    quiet_transformers()
    return usable_device(device)


def usable_device(name: str | None) -> "torch.device":
    """The device of that name; without one, a GPU if there is one.

    Raises:
        InputError: it cannot be used here.
    """
    import torch

    try:
        name = name or ("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device {name!r} cannot be used here: choose cpu, or cuda with a GPU."
        ) from error
    return device


def quiet_transformers() -> None:
    """Keep transformers' own progress bars, retries and advice off the screen."""
    import logging as standard

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in ("huggingface_hub", "httpx"):
        standard.getLogger(name).setLevel(standard.ERROR)


def mib(count: int) -> str:
    """A number of bytes for a person to read."""
    return f"{count / 2**20:.0f} MiB"


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers of 0 or more with commas between.

    Raises:
        InputError: they are not.
    """
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InputError(f"{option} takes whole numbers with commas between, not {text!r}.") from error
    if min(numbers) < 0:
        raise InputError(f"{option} takes no negative numbers, such as {min(numbers)}.")
    return numbers
