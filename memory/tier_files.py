"""Files of further tiers in a memory: ``tier-NAME``, and ``tier-NAME.0``, … for what never changes."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from hiermem.memory.records import SegmentRecord
from hiermem.memory.tier import Tier, new_tiers
from hiermem.retrieval.parts import Part

Files = Mapping[str, Mapping[str, Tensor]]


def tier_file(name: str) -> str:
    """The file of a tier."""
    return f"tier-{name}"


def files_of(tiers: Iterable[Tier]) -> dict[str, Mapping[str, Tensor]]:
    """All files of some tiers."""
    files: dict[str, Mapping[str, Tensor]] = {}
    for tier in tiers:
        file = tier_file(tier.name)
        files |= {file: tier.tensors()} | {f"{file}.{n}": part for n, part in enumerate(tier.series())}
    return files


def series_files(files: Files, tiers: Collection[str]) -> list[str]:
    """Names of the files of some tiers that never change."""
    return [name for name in files if name.rpartition(".")[0] in map(tier_file, tiers)]


def read_tiers(
    files: Files, settings: Mapping[str, Mapping[str, Any]], records: Sequence[SegmentRecord]
) -> tuple[Tier, ...]:
    """Tiers from their files.

    Args:
        settings: of each tier, by name.
        records: all complete ones of the document.

    Raises:
        ValueError: their tensors are not as they leave them.
    """
    tiers = new_tiers(settings)
    for tier in tiers:
        tier.load_series(_series(files, tier.name))
        tier.load(files[tier_file(tier.name)], records)
    return tiers


def _series(files: Files, name: str) -> list[Part]:
    """Parts of a tier that never change, in order.

    Raises:
        ValueError: one is missing.
    """
    file, count = tier_file(name), len(series_files(files, [name]))
    parts = [part for n in range(count) if isinstance(part := files.get(f"{file}.{n}"), Part)]
    if len(parts) < count:
        raise ValueError(f"{file} lacks one of its files")
    return parts
