"""Results of a measurement: their settings, kept in a file, taken up again after a stop, printed."""

import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.cli import options as opt
from hiermem.cli.signals import stoppable
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


def settings(
    model: str,
    config: "HierMemConfig",
    dtype: str | None,
    device: str | None,
    quantize: str | None,
    data: Iterable[str],
) -> dict[str, Any]:
    """Settings that results depend on: figures of a processor with and of one without bf16 do not mix.

    Args:
        data: the texts that are read.
    """
    import torch

    from hiermem import state_encoders
    from hiermem.config import HierMemConfig
    from hiermem.eviction_weights import resolve_eviction_weights
    from hiermem.loading import native_dtype, saved_model
    from hiermem.lora import ADAPTER
    from hiermem.shipped import shipped

    where = opt.usable_device(device)
    if quantize == "float16":  # whose layers compute in float32
        dtype = "float32"
    numbers = dtype or f"{native_dtype(torch.bfloat16, where)}".removeprefix("torch.")
    values = config.to_dict()
    parts = ["segment", "chunk", "working", "longterm", "asking"]
    parts += ["namm"] if config.working.policy == "namm" else []
    parts += ["summary"] if config.summary.tokens else []
    parts += ["mamba"] if config.mamba.groups else []
    parts += ["state_encoder"] if config.longterm.has_states else []
    depends = {"model": model, "dtype": numbers, "device": where.type, "data": data_hash(*data)}
    depends |= {} if quantize is None else {"quantization": quantize}
    if values["working"]["head_shares"] is None:
        del values["working"]["head_shares"]
    if not values["asking"]["rerank"]:  # as in results from before there was reranking
        del values["asking"]["rerank"], values["asking"]["margin"]
    if config.asking.least_confidence and not config.longterm.has_units:  # nor a confidence
        del values["asking"]["least_confidence"]
    depends |= keys_of_units(config)
    folder = saved_model(model)
    backbone = model if folder is None else HierMemConfig.from_saved(folder).backbone
    if folder is not None:
        depends["backbone"] = Path(backbone).name
    if config.longterm.has_states and (ships := shipped(backbone, state_encoders.FILE)) is not None:
        depends["states"] = sha256_of(ships)[:16]
    evictor = resolve_eviction_weights(config.evictor, backbone, config.working.policy)
    if evictor is not None:  # its head shares are in its digest
        depends["evictor"] = evictor.digest_for(config.working.policy)
        values["namm"] = config.with_evictor(evictor).to_dict()["namm"]
    if folder is not None:
        weights = {"parameters": folder / "model.safetensors", "adapter": folder / ADAPTER}
        for part, file in weights.items():
            if file.exists():
                depends[part] = sha256_of(file)[:16]
    return depends | {name: values[name] for name in parts}


def keys_of_units(config: "HierMemConfig") -> dict[str, Any]:
    """Settings of the search keys of units, their defaults and the hashes of their models among them; nothing
    where there are none."""
    from hiermem.retrieval.keys import new_search_keys

    nothing = {"projections": None, "state_encoder": None}
    keys = new_search_keys(config.longterm.keys, config=config.longterm.lexical, **nothing)
    found = {key.name: {**asdict(key), "digest": key.digest} for key in keys if key.of_units}
    return {"keys_of_units": found} if found else {}
