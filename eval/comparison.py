"""Which results may be compared, and what they are called: nothing of other settings stands in one table."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

Report = dict[str, Any]
"""The content of a result file: `task`, `metrics`, `rows`, `n`, `config`, `command`, …"""

METHOD_SETTINGS = frozenset(
    "system method keep passages policy budget window overlap segment chunk positions top_k evictor "
    "parameters adapter model encoder".split()
)
"""Settings that say how was answered; beside them, all parts of the model's configuration."""
_SHOWN_FIRST = ("backbone", "dataset", "folder", "dtype", "device", "split", "language", "limit", "seed")
_PLAIN = ("backbone", "dataset", "folder", "dtype", "device")
_HASH = "data"
_MIXED = ("pruned", "compressed")
UNBOUNDED = ("full_cache", "segment_local", "none", "forget")
"""Policies that no budget binds, by their names in new and in old results."""


def backbone_of(report: Report) -> str:
    """The backbone's name, without folders: of a model with trained memories, the one that they are for."""
    config = report["config"]
    return Path(str(config.get("backbone") or config.get("model") or "")).name


def ground_of(report: Report, told: Collection[str] = ()) -> dict[str, Any]:
    """All settings but those of the method: on what, with which backbone and in which numbers was measured.

    Args:
        told: settings that the table itself says.
    """
    config = report["config"]
    left_out = METHOD_SETTINGS | {"task", "backbone", *told}
    found = {key: value for key, value in config.items() if key not in left_out}
    found = {key: value for key, value in found.items() if not isinstance(value, dict)}
    return {"backbone": backbone_of(report), **found}


def grouped(reports: Sequence[Report], told: Collection[str] = ()) -> list[tuple[str, list[Report]]]:
    """Results that may be compared with each other, each group with its settings in words."""
    groups: dict[str, list[Report]] = defaultdict(list)
    grounds: dict[str, dict[str, Any]] = {}
    for report in reports:
        ground = ground_of(report, told)
        key = json.dumps(ground, sort_keys=True)
        groups[key].append(report)
        grounds[key] = ground
    keys = sorted({key for ground in grounds.values() for key in ground} - {*_SHOWN_FIRST, _HASH})
    differ = [k for k in keys if len({json.dumps(ground.get(k)) for ground in grounds.values()}) > 1]
    words = {key: _in_words(ground, (*_SHOWN_FIRST, *differ)) for key, ground in grounds.items()}
    counts = Counter(words.values())
    for key, ground in grounds.items():
        if counts[words[key]] > 1:  # nothing but the hash of their data tells them apart
            words[key] = _in_words(ground, (*_SHOWN_FIRST, *differ, _HASH))
    return [(words[key], members) for key, members in groups.items()]


def _in_words(ground: dict[str, Any], shown: Sequence[str]) -> str:
    words = []
    for key in shown:
        value = ground.get(key)
        if value in (None, "") or (key, value) == ("device", "cpu"):
            continue
        listed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        words.append(listed if key in _PLAIN else f"{key.replace('_', ' ')} {listed}")
    return ", ".join(words)


def family_of(report: Report) -> str:
    """The method in a few words, whatever its budget."""
    config = report["config"]
    method = str(config.get("system") or config.get("method") or "hiermem")
    working = config.get("working")
    policy = str((working if isinstance(working, dict) else config).get("policy", ""))
    if method == "hiermem":
        name = f"hiermem ({policy})" if policy else method
    elif method in _MIXED:
        name = policy if method == "pruned" else f"{policy}, {method}"
    else:
        name = method
    model, backbone = Path(str(config.get("model") or "")).name, backbone_of(report)
    return f"{name}, model {model}" if model != backbone else name


def variant_of(report: Report) -> str:
    """How much the method may keep or show: budget, share kept, passages."""
    config = report["config"]
    working = config.get("working")
    method = config.get("system") or config.get("method") or "hiermem"
    words = []
    if config.get("keep") is not None:
        words.append(f"keep {config['keep']}")
    elif method in ("hiermem", *_MIXED) and isinstance(working, dict) and _binds(working):
        words.append(f"budget {working['budget']}")
    if config.get("passages") is not None:
        count = config["passages"]
        words.append(f"{count} passage{'s' if count != 1 else ''}")
    return ", ".join(words)


def _binds(working: dict[str, Any]) -> bool:
    """Whether the budget of a working memory says anything."""
    return "budget" in working and working.get("policy") not in UNBOUNDED


def label_of(report: Report) -> str:
    """The method with its settings in words."""
    return ", ".join(filter(None, (family_of(report), variant_of(report))))


def labelled(
    reports: Sequence[Report],
    name: Callable[[Report], str] = label_of,
    shown: Collection[str] = (),
) -> list[tuple[str, Report]]:
    """Reports under the names of their methods; those of other settings never share one.

    Args:
        name: a method in words.
        shown: settings that the table says beside it.
    """
    groups: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        groups[name(report)].append(report)
    found = []
    for words, members in groups.items():
        settings = [{k: str(v) for k, v in _flat(r["config"]) if k not in shown} for r in members]
        differ = _telling_apart(settings)
        for report, own in zip(members, settings, strict=True):
            found.append((", ".join([words, *(f"{key} {own.get(key)}" for key in differ)]), report))
    return found


def _telling_apart(settings: Sequence[dict[str, str]]) -> list[str]:
    """The first settings by which all that differ at all can be told apart."""
    different = len({tuple(sorted(each.items())) for each in settings})
    chosen: list[str] = []
    for key in dict.fromkeys(key for each in settings for key in each):
        if len({tuple(each.get(k) for k in chosen) for each in settings}) == different:
            break
        if len({each.get(key) for each in settings}) > 1:
            chosen.append(key)
    return chosen


def _flat(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value)
        else:
            yield key, value
