"""Memories that were damaged, or changed and sealed anew: none may be believed, crash or hang.

``python tests/fuzz_memories.py 2000`` tries that many and prints what became of them; `test_strangers.py`
tries a few.
"""

import hashlib
import json
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors.torch
import torch
from readers import text_of
from tiers import TEXT, TIERS, model_of
from torch import Tensor

from hiermem.errors import HierMemError, MemoryFileError
from hiermem.memory.state import MemoryState
from hiermem.model import HierMemModel
from hiermem.retrieval import manifest as manifests

SECONDS = 60
"""After which a case counts as hanging."""

NONSENSE: list[Any] = [None, True, False, 0, -1, 1, 7, 0.5, -0.0, 1e308, 10**9, 2**31, 2**63, 10**400]
NONSENSE += ["", "x", "\x1b[2J", "/etc/passwd", "../..", "A" * 10**5]
NONSENSE += [[], [[]], {}, [0] * 1000, {"a": {"b": {}}}, [None], ["x"], {"": 1}, [1, 2], [-5], [10**9]]

MORE = text_of(12, seed=9)
QUESTION = "Who sang old songs about home?"


class Hang(BaseException):
    """A case took too long."""


class Case:
    """A memory's folder, to be changed, beside those of other tiers."""

    def __init__(self, folder: Path, others: list[Path], draw: random.Random) -> None:
        self.folder, self.others, self.draw = folder, others, draw

    @property
    def manifest(self) -> dict[str, Any]:
        """Content without its checksum."""
        body: dict[str, Any] = json.loads((self.folder / "manifest.json").read_bytes())
        del body["checksum"]
        return body

    def seal(self, body: dict[str, Any]) -> None:
        """Write the manifest with sizes and hashes of the files that there are, and a checksum that fits."""
        files = {file.name: file.read_bytes() for file in self.folder.glob("*.safetensors")}
        for entry in body["files"].values() if isinstance(body.get("files"), dict) else ():
            if isinstance(entry, dict) and (data := files.get(str(entry.get("file")))) is not None:
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (self.folder / "manifest.json").write_bytes(manifests.render(body))

    def any_file(self, *, sealed: bool = False) -> Path:
        """One of its files, the manifest among them unless that is to be sealed."""
        files = sorted(self.folder.glob("*.safetensors"))
        return self.draw.choice(files if sealed else [*files, self.folder / "manifest.json"])


# ---- damage


def flipped(case: Case) -> None:
    file = case.any_file()
    data = bytearray(file.read_bytes())
    data[case.draw.randrange(len(data))] ^= 1 << case.draw.randrange(8)
    file.write_bytes(data)


def cut(case: Case) -> None:
    file = case.any_file()
    data = file.read_bytes()
    file.write_bytes(data[: case.draw.randrange(len(data))])


def extend_state(case: Case) -> None:
    file = case.any_file()
    file.write_bytes(file.read_bytes() + case.draw.randbytes(case.draw.randrange(1, 100)))


def swapped(case: Case) -> None:
    one, other = case.draw.sample(sorted(case.folder.glob("*.safetensors")), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second), other.write_bytes(first)


DAMAGE = [flipped, cut, extend_state, swapped]


# ---- nonsense with a seal that fits


def value_in_manifest(case: Case) -> None:
    body = case.manifest
    places = [*_places(body)]
    holder, key = case.draw.choice(places)
    action = case.draw.randrange(6)
    if action == 0:
        holder.pop(key)
    elif action == 1 and isinstance(holder, dict):
        holder["stranger"] = case.draw.choice(NONSENSE)
    elif action == 2 and isinstance(holder[key], int):
        holder[key] += case.draw.choice([-1, 1, 16, -100, 10**6])
    else:
        holder[key] = case.draw.choice(NONSENSE)
    case.seal(body)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = node if isinstance(node, dict) else range(len(node))
    for key in list(keys):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from _places(node[key])


def byte_in_file(case: Case) -> None:
    file = case.any_file(sealed=True)
    data = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    within = header if case.draw.random() < 0.5 else len(data)
    for _ in range(case.draw.choice([1, 1, 4])):
        data[case.draw.randrange(within)] = case.draw.randrange(256)
    file.write_bytes(data)
    case.seal(case.manifest)


def length_of_file(case: Case) -> None:
    file = case.any_file(sealed=True)
    data = file.read_bytes()
    file.write_bytes(data[: case.draw.randrange(len(data) + 1)] + b"\0" * case.draw.choice([0, 1, 8]))
    case.seal(case.manifest)


def files_swapped(case: Case) -> None:
    swapped(case)
    case.seal(case.manifest)


def file_of_another(case: Case) -> None:
    part = case.draw.choice(["working", "records", "keys", "embeddings"])
    other = next(case.draw.choice(case.others).glob(f"{part}-*"))
    shutil.copy(other, next(case.folder.glob(f"{part}-*")))
    case.seal(case.manifest)


def tensor(case: Case) -> None:
    file = case.any_file(sealed=True)
    tensors = safetensors.torch.load(file.read_bytes())
    if not tensors:
        tensors["stranger"] = torch.zeros(3)
    names = sorted(tensors)
    name = case.draw.choice(names)
    action = case.draw.randrange(5)
    if action == 0:
        tensors.pop(name)
    elif action == 1:
        tensors[case.draw.choice(["stranger", f"{name}.x", "0.keys", "99.keys", ""])] = tensors[name].clone()
    elif action == 2:
        other = case.draw.choice(names)
        tensors[name], tensors[other] = tensors[other].clone(), tensors[name].clone()
    else:
        tensors[name] = case.draw.choice(CHANGES)(tensors[name], case.draw)
    tensors = {name: value.clone().contiguous() for name, value in tensors.items()}
    file.write_bytes(safetensors.torch.save(tensors))
    case.seal(case.manifest)


def _one_changed(value: Tensor, draw: random.Random) -> Tensor:
    flat = value.clone().flatten()
    if flat.dtype == torch.bool:
        return ~value
    if flat.numel():
        big = [float("nan"), float("inf"), 1e30, -1.0] if flat.is_floating_point() else [-1, -2, 0, 1, 10**4]
        big += [] if flat.dtype != torch.int64 else [2**62, -(2**63)]
        flat[draw.randrange(flat.numel())] = (
            draw.choice(big) if flat.dtype != torch.uint8 else draw.randrange(256)
        )
    return flat.view(value.shape)


CHANGES: list[Callable[[Tensor, random.Random], Tensor]] = [
    _one_changed,
    _one_changed,
    _one_changed,
    lambda value, draw: value.to(
        draw.choice([torch.float64, torch.float16, torch.int8, torch.int64, torch.bool])
    ),
    lambda value, draw: value.unsqueeze(draw.randrange(value.ndim + 1)),
    lambda value, draw: value.flatten(),
    lambda value, draw: value[..., : draw.randrange(value.shape[-1] + 1)] if value.ndim else value,
    lambda value, draw: value[: draw.randrange(len(value) + 1)] if value.ndim else value,
    lambda value, draw: torch.cat((value, value)) if value.ndim else value,
    lambda value, draw: torch.cat((value, value), dim=-1) if value.ndim else value,
    lambda value, draw: value.transpose(0, -1) if value.ndim else value,
    lambda value, draw: value.flip(0) if value.ndim else value,
    lambda value, draw: torch.zeros_like(value),
    lambda value, draw: (
        value.view(torch.uint8).flip(0).view(value.dtype) if value.ndim == 1 else value.flip(-1)
    ),
]

NEW_SEALS = [value_in_manifest, value_in_manifest, tensor, tensor, byte_in_file, length_of_file]
NEW_SEALS += [files_swapped, file_of_another]


# ---- what becomes of them


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Raise `Hang` after so many seconds."""

    def stop(_: int, __: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def used(folder: Path, model: HierMemModel) -> str:
    """Load, verify, ask and read on: ``refused`` or ``accepted``; whatever else it raises is a fault."""
    problems = MemoryState.verify(folder)
    try:
        MemoryState.read_with(folder)
        memory = MemoryState.load(folder, model)
    except MemoryFileError:
        return "refused"
    assert problems == [], "it can be loaded, and verify says that it cannot"
    repr(memory)
    try:
        model.ask(memory, QUESTION, max_new_tokens=2)
        model.read(MORE, memory, progress=False)
        memory.save(folder)
        MemoryState.load(folder, model)
    except HierMemError as error:
        return f"refused later: {error}"
    return "accepted"


def tried(count: int, seed: int = 0, tiers: tuple[str, ...] = tuple(TIERS)) -> tuple[Counter[str], list[str]]:
    """Try ``count`` changes; how many of each kind ended how, and what went wrong, each in words."""
    draw, ends, faults = random.Random(seed), Counter[str](), list[str]()
    models = {tier: model_of(tier) for tier in tiers}
    with tempfile.TemporaryDirectory() as place:
        whole = {tier: Path(place) / tier for tier in tiers}
        for tier, model in models.items():
            model.read(TEXT).save(whole[tier])
        for number in range(count):
            tier, damage, folder = draw.choice(tiers), number % 2 == 0, Path(place) / "memory"
            change = draw.choice(DAMAGE if damage else NEW_SEALS)
            shutil.copytree(whole[tier], folder)
            change(Case(folder, [*whole.values()], draw))
            try:
                with limit(SECONDS):
                    end = "unchanged" if _same(folder, whole[tier]) else used(folder, models[tier])
            except (Exception, Hang):
                end = "fault"
                faults.append(f"{number} {tier} {change.__name__}: {traceback.format_exc(limit=-4)}")
            if damage and end not in ("refused", "unchanged", "fault"):
                faults.append(f"{number} {tier} {change.__name__}: damage was not noticed")
            ends[f"{change.__name__}: {end.split(':')[0]}"] += 1
            shutil.rmtree(folder)
    return ends, faults


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    mine, yours = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (one, other))
    return mine == yours


if __name__ == "__main__":
    torch.set_num_threads(1)
    ends, faults = tried(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for fault in faults:
        sys.stdout.write(f"{fault}\n")
    for end, number in sorted(ends.items()):
        sys.stdout.write(f"{number:5d} {end}\n")
    sys.stdout.write(f"{len(faults)} faults in {ends.total()}\n")
