"""Figures of tiny models that no change of the code's structure or names may change.

    python tests/golden.py                        # write the figures that are committed, and what is missing
                                                  # of the saved models and memories
    python tests/golden.py --write FOLDER         # write figures elsewhere
    python tests/golden.py --check-exact FOLDER   # compare bit for bit with figures that this machine wrote

To prove that a change is none, write figures before it with one thread (`OMP_NUM_THREADS=1`), and compare
after it in the same way: exit status 1, and the names of figures that differ, where any does. Elsewhere than
in the committed folder there are also figures in bfloat16. `--only PREFIX` takes some groups, such as
`families/gemma2`; `--demo` adds the demo, which takes minutes. `test_golden.py` compares with what is
committed, within the rounding of other processors.

Saved models and memories are those of the code that wrote them first: they are never written again.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import golden_figures as of
import golden_memories as kept
import torch
import transformers
from families import CONFIGS
from golden_figures import Figures, Unavailable
from safetensors.torch import load_file, save_file
from torch import Tensor

FIGURES = Path(__file__).parent / "data" / "golden" / "figures"
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""What figures of another processor may differ by."""

GROUPS: dict[str, Callable[[], Figures]] = {
    **{f"families/{name}": partial(of.family, name) for name in CONFIGS},
    **{f"tiers/{name}": partial(of.tier, name) for name in of.TIERS},
    **{f"saved/{name}": partial(kept.saved, name) for name in kept.SAVED_TIERS},
    **{f"saved/format1-{name}": partial(kept.first_format, name) for name in kept.FIRST_TIERS},
    **{f"saved/model-format{version}": partial(kept.earlier_format, version) for version in (1, 2)},
    "evaluation": kept.evaluation,
    "real": kept.real,
}
EXACT: dict[str, Callable[[], Figures]] = {
    f"bfloat16/{name}": partial(of.tier, name, torch.bfloat16)
    for name in ("shares", "everything", "isolated", "gemma2-mamba")
}
"""Of one processor alone: where numbers are rounded so much, another one decides otherwise."""


def write(folder: Path, name: str, figures: Figures) -> None:
    """Keep the figures of a group: tensors, and all else as JSON."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.contiguous() for key, value in figures.items() if isinstance(value, Tensor)}
    others = {key: value for key, value in figures.items() if key not in tensors}
    path.write_text(json.dumps(others, ensure_ascii=False, indent=1) + "\n", "utf-8")
    if tensors:
        save_file(tensors, path.with_suffix(".safetensors"))


def read(folder: Path, name: str) -> Figures:
    """The inverse of `write`."""
    path = folder / f"{name}.json"
    figures: Figures = json.loads(path.read_text("utf-8"))
    tensors = path.with_suffix(".safetensors")
    return figures | (load_file(tensors) if tensors.exists() else {})


def differences(expected: Any, found: Any, exact: bool, name: str = "") -> list[str]:
    """Where figures are others, in words.

    Args:
        exact: bit for bit; otherwise, within what processors round differently.
        name: of what is compared.
    """
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (found.shape, found.dtype):
            return [f"{name}: another shape or type"]
        if torch.equal(expected, found):
            return []
        far = (expected.double() - found.double()).abs()
        near = torch.allclose(found.double(), expected.double(), RELATIVE, ABSOLUTE)
        return [f"{name}: up to {far.max():.2g} apart"] if exact or not near else []
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        pairs = [(expected[key], found[key], f"{name}: {key}") for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [
            (one, other, f"{name}[{at}]") for at, (one, other) in enumerate(zip(expected, found, strict=True))
        ]
    elif isinstance(expected, float) and isinstance(found, float) and not exact:
        near = math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
        return [] if near else [f"{name}: {found} in place of {expected}"]
    else:
        return [] if expected == found else [f"{name}: {found!r} in place of {expected!r}"]
    return [line for one, other, label in pairs for line in differences(one, other, exact, label)]


def main() -> int:
    """Write, or compare; exit status 1 where a figure is another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", type=Path, metavar="FOLDER")
    where.add_argument("--check-exact", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default="", metavar="PREFIX")
    parser.add_argument("--demo", action="store_true")
    given = parser.parse_args()
    outside = given.write or given.check_exact
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    groups = GROUPS | (EXACT if outside else {}) | ({"demo": kept.demo} if given.demo else {})
    failed = 0
    for name in [name for name in groups if name.startswith(given.only)]:
        if not outside and (tier := name.removeprefix("saved/")) in kept.SAVED_TIERS:
            kept.write_saved(tier)
        try:
            figures = groups[name]()
        except Unavailable as error:
            print(f"left out   {name}: {error}")  # noqa: T201
            continue
        if given.check_exact is None:
            write(outside or FIGURES, name, figures)
            continue
        lines = differences(read(given.check_exact, name), figures, exact=True)
        failed += bool(lines)
        print(f"{'DIFFERENT' if lines else 'the same ':10} {name}", *lines[:8], sep="\n    ")  # noqa: T201
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
