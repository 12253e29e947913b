"""Results of a measurement: what they depend on, kept in a file, taken up again after a stop, printed."""

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.cli import options as opt
from hiermem.cli.signals import stoppable
from hiermem.errors import InputError
from hiermem.eval.result_log import ResultLog, data_hash
from hiermem.retrieval.disk import sha256_of

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig

Report = dict[str, Any]


def run(
    task: str,
    measure: Callable[[ResultLog], Report],
    settings: dict[str, Any],
    out: Path | None,
    as_json: bool,
    words: Callable[[Report], str] | None = None,
) -> None:
    """Measure, or take the result of an earlier run with the same settings, and print it.

    Args:
        words: makes the text that is printed; by default metrics and rows, a line each.
    """
    command = f"hiermem {shlex.join(sys.argv[1:])}"
    with stoppable():
        report = ResultLog(out, {"task": task, **settings}).report(measure, command)
    opt.emit(report, as_json, (words or _words)(report))


def _words(report: Report) -> str:
    lines = [f"{name}: {value:.4g}" for name, value in report["metrics"].items()]
    for row in report.get("rows", []):
        shown = {name: value for name, value in row.items() if not isinstance(value, list)}
        lines.append("  " + "  ".join(f"{name} {_number(value)}" for name, value in shown.items()))
    return "\n".join([*lines, f"n = {report['n']}, {report['seconds']:.1f} s"])


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---- what results depend on


def drawn(limit: int | None, seed: int | None) -> dict[str, Any]:
    """What part of the questions is taken, among the settings of a run: the seed where there is a limit."""
    if limit is None and seed is not None:
        raise InputError("Only what --limit leaves is drawn with a seed: give --limit, or leave --seed out.")
    return {"limit": limit} if limit is None else {"limit": limit, "seed": seed or 0}


def kept(keep: float | None, system: str, config: "HierMemConfig") -> dict[str, float]:
    """The share that is kept, among the settings of a run, where one was given."""
    from hiermem.eval.methods import check_compressed

    check_compressed(system, config.working, keep)
    if keep is not None and system not in ("pruned", "compressed"):
        raise InputError("Only --system pruned and compressed keep a share of a text: leave --keep out.")
    if keep == 0:
        raise InputError("A share of 0 keeps nothing: raise --keep.")
    return {} if keep is None else {"keep": keep}


def settings(
    model: str, config: Any, dtype: str | None, device: str | None, data: Iterable[str]
) -> dict[str, Any]:
    """What results depend on: figures of a processor with and of one without bf16 do not mix.

    Args:
        data: the texts that are read.
    """
    import torch

    from hiermem.config import HierMemConfig
    from hiermem.eviction_weights import resolve_eviction_weights
    from hiermem.loading import native_dtype, saved_model
    from hiermem.lora import ADAPTER

    where = opt.usable_device(device)
    numbers = dtype or f"{native_dtype(torch.bfloat16, where)}".removeprefix("torch.")
    known = config.to_dict()
    parts = ["segment", "chunk", "working", "longterm", "asking"]
    parts += ["namm"] if config.working.policy == "namm" else []
    parts += ["summary"] if config.summary.tokens else []
    parts += ["mamba"] if config.mamba.groups else []
    depends = {"model": model, "dtype": numbers, "device": where.type, "data": data_hash(*data)}
    if known["working"]["head_shares"] is None:
        del known["working"]["head_shares"]
    if not known["asking"]["rerank"]:  # as in results from before there was reranking
        del known["asking"]["rerank"], known["asking"]["margin"]
    folder = saved_model(model)
    backbone = model if folder is None else HierMemConfig.from_saved(folder).backbone
    evictor = resolve_eviction_weights(config.evictor, backbone, config.working.policy)
    if evictor is not None:  # its head shares are in its digest
        depends["evictor"] = evictor.digest
        known["namm"] = config.with_evictor(evictor).to_dict()["namm"]
    if folder is not None:
        weights = {"parameters": folder / "model.safetensors", "adapter": folder / ADAPTER}
        for part, file in weights.items():
            if file.exists():
                depends[part] = sha256_of(file)[:16]
    return depends | {name: known[name] for name in parts}
