"""The memory directory keeps its promises: whole or not at all, verified, one writer, many readers.

Run as a script (``test_files.py TASK DIRECTORY``) this file does the tasks that fork and kill: in
a process of its own, with no threads, that imports torch once for all its children.
"""

import errno
import hashlib
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from hiermem.errors import (
    InputError,
    MemoryCorruptError,
    MemoryFileError,
    MemoryLockedError,
    MemoryMissingError,
    MemoryTooNewError,
)
from hiermem.retrieval import disk, files, parts, regular_files, staging, tensors
from hiermem.retrieval import manifest as manifests
from hiermem.retrieval.files import (
    load_directory,
    only_writer,
    save_directory,
    saved_bytes,
    verify_directory,
)
from hiermem.retrieval.parts import Part

NAMES = ("index", "levels", "state")
OUR_FILES = {module.__file__ for module in (disk, files, parts, staging)}
"""All that writes."""


def save_version(path: Path, version: int, numel: int = 8) -> None:
    """Save a memory whose every part says the same version; one file is in every other only."""
    group = {"version": torch.tensor(version), "body": torch.full((numel,), version)}
    names = NAMES if version % 2 else NAMES[:2]
    save_directory(path, dict.fromkeys(names, group), {"version": version})


def load_version(path: Path) -> int:
    """Load such a memory and return its version; all of it must be of that version."""
    tensors, info = load_directory(path)
    version = info["version"]
    assert set(tensors) == set(NAMES if version % 2 else NAMES[:2])
    for group in tensors.values():
        assert group["version"].item() == version
        assert (group["body"] == version).all()
    return int(version)


def listing(path: Path) -> dict[str, bytes]:
    """Every file of a directory with its bytes."""
    return {p.name: p.read_bytes() for p in path.iterdir()}


def named(path: Path) -> set[str]:
    """The names that a memory without orphans consists of."""
    manifest = json.loads((path / "manifest.json").read_bytes())
    return {"manifest.json", ".lock"} | {e["file"] for e in manifest["files"].values()}


def reseal(path: Path, **changes: Any) -> None:
    """Change the manifest and give it the checksum that fits."""
    body = json.loads((path / "manifest.json").read_bytes())
    del body["checksum"]
    (path / "manifest.json").write_bytes(manifests.render(body | changes))


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    save_version(tmp_path / "memory", 1)
    return tmp_path / "memory"


# --- round trip ---------------------------------------------------------------------------------

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def test_every_dtype_and_shape_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randint(-100, 100, (4, 6), generator=torch.Generator().manual_seed(0))
    given = {
        "types": {str(dtype): base.to(dtype) for dtype in DTYPES},
        "shapes": {
            "scalar": torch.tensor(2.5),
            "empty": torch.empty(0),
            "empty bf16": torch.empty(3, 0, 2, dtype=torch.bfloat16),
            "transposed": base.t(),
            "strided": base[::2, 1::3],
            "expanded": base[:, :1].expand(4, 6),
            "same": base,
            "same again": base,
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
        },
        "a.b_c-d": {"text": torch.tensor(list("Grüße ∑".encode()), dtype=torch.uint8)},
        "no_tensors": {},
    }
    info: dict[str, Any] = {"ü": ["\x00", None, True, 1.5e-300, 2**80, {"deep": [[]]}], "": {}}
    save_directory(tmp_path / "a" / "b" / "memory", given, info)
    tensors, loaded_info = load_directory(tmp_path / "a" / "b" / "memory")
    assert loaded_info == info
    assert {n: set(g) for n, g in tensors.items()} == {n: set(g) for n, g in given.items()}
    for name, group in given.items():
        for key, tensor in group.items():
            back = tensors[name][key]
            assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
            want = tensor.detach().contiguous()
            assert raw_bytes(back) == raw_bytes(want)
    assert verify_directory(tmp_path / "a" / "b" / "memory") == []


def raw_bytes(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def test_manifest_is_as_documented(memory: Path) -> None:
    manifest = json.loads((memory / "manifest.json").read_bytes())
    checksum = manifest.pop("checksum")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert checksum == hashlib.sha256(canonical.encode()).hexdigest()
    assert set(manifest) == {"format", "format_version", "library_version", "files", "info"}
    assert (manifest["format"], manifest["format_version"]) == ("hiermem-memory", 4)
    for name, entry in manifest["files"].items():
        data = (memory / entry["file"]).read_bytes()
        assert entry["file"].startswith(f"{name}-")
        assert entry["file"].endswith(".safetensors")
        assert entry["bytes"] == len(data)
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_save_replaces_the_memory_and_leaves_nothing_behind(memory: Path) -> None:
    before = named(memory)
    own = {"notes.txt", "index-0123456789abcdef.safetensors", "manifest-0123456789abcdef.tmp"}
    for name in own:  # whatever they are called
        (memory / name).write_text("mine")
    save_version(memory, 2)
    assert load_version(memory) == 2
    assert set(listing(memory)) == named(memory) | own
    assert named(memory) & before == {"manifest.json", ".lock"}


def test_loaded_tensors_may_be_changed_without_touching_the_memory(memory: Path) -> None:
    load_directory(memory)[0]["index"]["body"].zero_()
    assert load_version(memory) == 1


# --- what is refused before anything is touched -------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\n", "ü", "x" * 101])
def test_names_that_are_not_plain_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        save_directory(tmp_path / "m", {name: {}}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "info",
    [{"a": float("nan")}, {"a": float("inf")}, {1: "a"}, {"a": (1,)}, {"a": b""}, {"a": {1}}],
)
def test_info_that_would_not_come_back_is_refused(tmp_path: Path, info: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        save_directory(tmp_path / "m", {}, info)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    for below in (path, path / "below"):
        with pytest.raises(MemoryFileError):
            save_version(below, 1)
        with pytest.raises(MemoryMissingError):
            load_directory(below)
    assert listing(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize(
    "names",
    [
        ["notes.txt"],
        [".lock", "notes.txt"],
        ["index-0123456789abcdef.safetensors"],
        ["model.safetensors"],
        ["manifest.json"],
        [".saving", "notes.txt"],
        [".lock", "index-0123456789abcdef.safetensors"],
    ],
)
def test_a_directory_of_other_things_is_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    before = listing(tmp_path)
    with pytest.raises(MemoryFileError):
        save_version(tmp_path, 1)
    assert listing(tmp_path) == before


def test_what_a_killed_first_save_left_is_accepted(tmp_path: Path) -> None:
    names = ["index-0123456789abcdef.safetensors", "manifest-0123456789abcdef.tmp"]
    for name in (".lock", *names):
        (tmp_path / name).write_text("")
    staging.Staging(tmp_path).note(names)
    with pytest.raises(MemoryMissingError):
        load_directory(tmp_path)
    save_version(tmp_path, 1)
    assert load_version(tmp_path) == 1
    assert set(listing(tmp_path)) == named(tmp_path)


# --- damage -------------------------------------------------------------------------------------


def assert_corrupt(memory: Path, file: str) -> None:
    with pytest.raises(MemoryCorruptError, match=file) as caught:
        load_directory(memory)
    assert type(caught.value) is MemoryCorruptError
    assert verify_directory(memory) == [str(caught.value)]


def test_one_changed_byte_anywhere_is_found(memory: Path) -> None:
    rng = random.Random(0)
    checked = 0
    for name in named(memory) - {".lock"}:
        good = (memory / name).read_bytes()
        for position in range(len(good)):
            bad = bytearray(good)
            bad[position] ^= 1 << rng.randrange(8)
            (memory / name).write_bytes(bad)
            assert_corrupt(memory, name)
            checked += 1
        (memory / name).write_bytes(good)
    assert checked > 1000
    assert load_version(memory) == 1


def test_changes_that_json_does_not_see_are_found(memory: Path) -> None:
    manifest = memory / "manifest.json"
    good = manifest.read_bytes()
    for bad in (
        good + b" ",
        good.replace(b"\n ", b"\n\t", 1),
        json.dumps(json.loads(good)).encode(),
    ):
        manifest.write_bytes(bad)
        assert_corrupt(memory, "manifest.json")


def test_every_cut_and_every_growth_is_found(memory: Path) -> None:
    for name in named(memory) - {".lock"}:
        good = (memory / name).read_bytes()
        cuts = [good[:length] for length in {0, 1, 7, 8, 9, len(good) // 2, len(good) - 1}]
        for bad in [*cuts, good + b"\0"]:
            (memory / name).write_bytes(bad)
            assert_corrupt(memory, name)
        (memory / name).write_bytes(good)


def test_each_missing_file_is_named_and_all_problems_are_listed(memory: Path) -> None:
    index, levels, state = sorted(named(memory) - {"manifest.json", ".lock"})
    (memory / state).unlink()
    assert_corrupt(memory, f"{state} .* is missing")
    (memory / levels).write_bytes((memory / levels).read_bytes()[:-3])
    good = (memory / index).read_bytes()
    (memory / index).write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    problems = verify_directory(memory)
    assert len(problems) == 3
    for name, why in ((index, "changed"), (levels, "cut short"), (state, "missing")):
        assert any(name in problem and why in problem for problem in problems)


def test_a_file_of_an_older_save_is_found(memory: Path) -> None:
    first = min(named(memory) - {"manifest.json", ".lock"})
    old = (memory / first).read_bytes()
    save_version(memory, 3)
    first = min(named(memory) - {"manifest.json", ".lock"})
    (memory / first).write_bytes(old)
    assert_corrupt(memory, first)


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"null", b"\xff", b"[" * 10**6, b'{"checksum":1}'])
def test_any_other_manifest_is_corrupt_and_not_overwritten(memory: Path, raw: bytes) -> None:
    (memory / "manifest.json").write_bytes(raw)
    assert_corrupt(memory, "manifest.json")
    before = listing(memory)
    with pytest.raises(MemoryCorruptError):
        save_version(memory, 2)
    assert listing(memory) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"},
        {"format_version": "1"},
        {"format_version": 0},
        {"format_version": True},
        {"format_version": 0.5},
        {"more": 1},
        {"files": {"../i": {"file": "i-0123456789abcdef.safetensors", "bytes": 1, "sha256": "0" * 64}}},
        {"files": {"i": {"file": "i-0123456789abcdef.safetensors", "bytes": -1, "sha256": "0" * 64}}},
        {"files": {"i": {"file": "i-0123456789abcdef.safetensors", "bytes": 1, "sha256": "0"}}},
        {
            "files": {
                name: {"file": "i-0123456789abcdef.safetensors", "bytes": 1, "sha256": "0" * 64}
                for name in "ij"
            }
        },
        {"files": [1]},
        {"files": {"index": {"file": "x"}}},
        {"files": {"index": {"file": "../../etc/passwd", "bytes": 1, "sha256": ""}}},
        {"files": {"i": {"file": "i-0123456789abcdef.safetensors", "bytes": "1", "sha256": ""}}},
        {"info": None},
    ],
)
def test_a_sealed_manifest_of_another_shape_is_corrupt(memory: Path, changes: Any) -> None:
    reseal(memory, **changes)
    assert_corrupt(memory, "manifest.json")


def test_a_sealed_file_that_is_not_safetensors_is_corrupt(memory: Path) -> None:
    junk = b"\xff" * 64
    (memory / "j-0123456789abcdef.safetensors").write_bytes(junk)
    entry = manifests.Entry("j-0123456789abcdef.safetensors", 64, hashlib.sha256(junk).hexdigest())
    reseal(memory, files={"j": entry._asdict()})
    assert_corrupt(memory, "j-0123456789abcdef.safetensors")


def test_a_newer_format_says_upgrade_and_is_not_overwritten(memory: Path) -> None:
    reseal(memory, format_version=manifests.FORMAT_VERSION + 1, files={"new": "shape"}, more=[])
    before = listing(memory)
    for use in (load_directory, lambda path: save_version(path, 2)):
        with pytest.raises(MemoryTooNewError, match="upgrade hiermem"):
            use(memory)
    assert len(verify_directory(memory)) == 1
    assert listing(memory) == before


def test_nothing_there_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        for read in (load_directory, verify_directory):
            with pytest.raises(MemoryMissingError, match="There is no memory at"):
                read(path)


# --- folders that lead elsewhere ----------------------------------------------------------------


def as_link(file: Path, outside: Path) -> None:
    file.rename(outside)
    file.symlink_to(outside)


def as_folder(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def as_pipe(file: Path, _: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def as_socket(file: Path, outside: Path) -> None:
    file.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{outside.parent}/s")  # names of sockets are short
    (outside.parent / "s").rename(file)


def as_holes(file: Path, _: Path) -> None:
    os.truncate(file, 1 << 40)


OTHERS = [as_link, as_folder, as_pipe, as_socket]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("which", ["manifest", "data", ".lock", ".saving"])
def test_only_plain_files_are_opened(memory: Path, tmp_path: Path, other: Any, which: str) -> None:
    names = {"manifest": "manifest.json", "data": sorted(named(memory))[1]}
    file = memory / names.get(which, which)
    if which == ".saving":
        file.write_text("")
    elif which == ".lock":
        file.write_text("kept")
    other(file, tmp_path / "outside")
    outside = (tmp_path / "outside").read_bytes() if other is as_link else b""
    if which in names:
        assert_corrupt(memory, f"{file.name} .* not a plain file")
    else:
        assert load_version(memory) == 1
    if which == "data":
        save_version(memory, 2)
        assert load_version(memory) == 2
    else:
        with pytest.raises(MemoryFileError):
            save_version(memory, 2)
    if other is as_link:
        assert (tmp_path / "outside").read_bytes() == outside


def test_a_file_of_holes_is_not_read(memory: Path) -> None:
    file = memory / min(named(memory) - {".lock", "manifest.json"})
    body = json.loads((memory / "manifest.json").read_bytes())["files"]
    for entry in body.values():
        entry["bytes"] = regular_files.HOLES_FROM if entry["file"] == file.name else entry["bytes"]
    os.truncate(file, regular_files.HOLES_FROM)
    reseal(memory, files=body)
    assert_corrupt(memory, f"{file.name} .* made of holes")
    os.truncate(memory / "manifest.json", 1 << 40)
    assert_corrupt(memory, "manifest.json")


def test_more_than_fits_into_the_machine_is_not_read(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "physical_memory", lambda: 100)
    with pytest.raises(MemoryFileError, match="more than this machine has"):
        load_directory(memory)
    monkeypatch.undo()
    assert (regular_files.physical_memory() or 1 << 40) > 1 << 24


def header(**changes: Any) -> str:
    """The header of a file with the tensor ``a`` of two bytes, but for the changes."""
    return json.dumps({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]} | changes})


HEADERS = {
    "another dtype": header(dtype="F4", shape=[4]),
    "no dtype": header(dtype=["U8"]),
    "too many dimensions": header(shape=[1] * 10**5),
    "no list": header(shape=2),
    "no whole number": header(shape=[2.0]),
    "no number": header(shape=[True]),
    "too large": header(shape=[2**62, 0], data_offsets=[0, 0]),
    "too large when multiplied": header(shape=[2**40, 2**40, 0], data_offsets=[0, 0]),
    "fewer bytes": header(dtype="F32"),
    "negative": header(shape=[-2], data_offsets=[0, -2]),
    "outside": header(data_offsets=[9, 11]),
    "twice": header()[:-1] + ", " + header()[1:],
    "more": header(b=1),
    "no object": "[]",
    "deep": "[" * 10**5,
    "long number": '{"a": ' + "9" * 5000 + "}",
    "truth": header(dtype="BOOL"),
}


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_headers_that_no_save_writes_are_refused(text: str) -> None:
    data = len(text).to_bytes(8, "little") + text.encode() + b"\1\2"
    with pytest.raises(ValueError, match=r"^(its header|it is not|'a' )"):
        tensors.parse(data)


@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS)
def test_headers_of_mapped_files_are_checked_as_well(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"\1\2")
    with (
        regular_files.plain_file(tmp_path / "file") as file,
        pytest.raises(ValueError, match=r"^(its|it|'a') "),
    ):
        tensors.views(file.mapped())


def test_a_mapped_tensor_begins_where_its_type_can(tmp_path: Path) -> None:
    text = header(dtype="I16", shape=[1]) + " " * 3
    text += " " * (1 - len(text) % 2)
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text.encode() + b"\1\2")
    with (
        regular_files.plain_file(tmp_path / "file") as file,
        pytest.raises(ValueError, match="does not stand"),
    ):
        tensors.views(file.mapped())


@pytest.mark.parametrize("data", [b"", b"\0" * 7, b"\xff" * 16, (2**63).to_bytes(8, "little") + b"{}"])
def test_bytes_without_a_header_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensors.parse(data)


# --- what is written once -----------------------------------------------------------------------


def part_of(value: int) -> Part:
    return Part(
        {"body": torch.full((300,), value), "none": torch.zeros(0, 3), "bf": torch.ones(3).bfloat16()}
    )


def save_parts(path: Path, version: int, *of_series: Part) -> None:
    """Save a memory with parts beside one file that changes."""
    series = {f"series.{number}": part for number, part in enumerate(of_series)}
    save_directory(path, {"state": {"version": torch.tensor(version)}, **series}, {"version": version})


def part_file(path: Path, number: int = 0) -> Path:
    return next(path.glob(f"series.{number}-*"))


def test_a_part_is_written_once_and_mapped_from_there(tmp_path: Path) -> None:
    path, first, second = tmp_path / "memory", part_of(1), part_of(2)
    save_parts(path, 1, first)
    file, written = part_file(path), os.stat(part_file(path))
    kept = first["body"]
    save_parts(path, 2, first, second)
    loaded, _ = load_directory(path)
    assert part_file(path) == file and os.stat(file).st_ino == written.st_ino
    assert os.stat(file).st_mtime_ns == written.st_mtime_ns
    for name, value in (("series.0", 1), ("series.1", 2)):
        part = loaded[name]
        assert isinstance(part, Part) and part.keys() == first.keys()
        assert (part["body"] == value).all() and part["none"].shape == (0, 3) and (part["bf"] == 1).all()
    assert kept.data_ptr() == first["body"].data_ptr() and (first["body"] == 1).all()
    before = file.read_bytes()
    loaded["series.0"]["body"][0] = 7  # stays private
    assert file.read_bytes() == before and verify_directory(path) == []
    save_parts(path, 3, *(part for part in loaded.values() if isinstance(part, Part)))
    assert part_file(path) == file and set(listing(path)) == named(path)
    assert saved_bytes(path) == sum(len(data) for data in listing(path).values())


def test_a_part_that_is_no_more_wanted_goes(tmp_path: Path) -> None:
    save_parts(tmp_path, 1, part_of(1), part_of(2))
    save_parts(tmp_path, 2, part_of(3))
    assert set(listing(tmp_path)) == named(tmp_path)
    assert (load_directory(tmp_path)[0]["series.0"]["body"] == 3).all()


@pytest.mark.parametrize("links", [True, False])
def test_a_part_of_another_memory_is_linked_or_written(
    tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_parts(tmp_path / "one", 1, part_of(1))
    part = load_directory(tmp_path / "one")[0]["series.0"]
    assert isinstance(part, Part)
    if not links:
        monkeypatch.setattr(parts.os, "link", lambda *_, **__: raise_error(OSError(errno.EXDEV, "no links")))
    save_parts(tmp_path / "other", 1, part)
    one, other = part_file(tmp_path / "one"), part_file(tmp_path / "other")
    assert (one.stat().st_ino == other.stat().st_ino) is links and one.read_bytes() == other.read_bytes()
    for place in ("one", "other"):
        for file in (tmp_path / place).iterdir():
            file.unlink()
    save_parts(tmp_path / "third", 1, part)  # from the map alone
    assert verify_directory(tmp_path / "third") == []
    assert (load_directory(tmp_path / "third")[0]["series.0"]["body"] == 1).all()


def raise_error(error: Exception) -> None:
    raise error


def test_damage_of_a_part_is_found(tmp_path: Path) -> None:
    save_parts(tmp_path, 1, part_of(1), part_of(2))
    first, second = part_file(tmp_path), part_file(tmp_path, 1)
    good, rng = first.read_bytes(), random.Random(0)
    for position in range(0, len(good), 7):
        bad = bytearray(good)
        bad[position] ^= 1 << rng.randrange(8)
        first.write_bytes(bad)
        assert_corrupt(tmp_path, f"{first.name} .* changed")
    for bad in (b"", good[:-1], good[:9], good + b"\0", second.read_bytes()):
        first.write_bytes(bad)
        assert_corrupt(tmp_path, first.name)
    first.unlink()
    assert_corrupt(tmp_path, f"{first.name} .* is missing")
    as_link(second, tmp_path / "outside")
    assert len(verify_directory(tmp_path)) == 2


def test_parts_need_not_fit_into_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_parts(tmp_path, 1, part_of(1))
    monkeypatch.setattr(files, "physical_memory", lambda: 1000)
    assert (load_directory(tmp_path)[0]["series.0"]["body"] == 1).all()


@pytest.mark.parametrize("name", ["series.0", "series"])
def test_parts_have_names_of_their_own(tmp_path: Path, name: str) -> None:
    group = part_of(1) if name == "series" else {"body": torch.ones(1)}
    with pytest.raises(InputError, match="cannot name a file"):
        save_directory(tmp_path, {name: group}, {})


def test_parts_survive_an_interrupt_at_every_line(tmp_path: Path) -> None:
    outcomes = []
    for number in range(1, 1000, 2):
        path, first, second = tmp_path / f"{number}", part_of(1), part_of(2)
        save_parts(path, 1, first)
        before, old_trace = listing(path), sys.gettrace()
        sys.settrace(stop_at_line(number, interrupt))
        try:
            save_parts(path, 2, first, second)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(old_trace)
        loaded, info = load_directory(path)
        outcomes.append(info["version"])
        assert (loaded["series.0"]["body"] == 1).all() and ("series.1" in loaded) == (info["version"] == 2)
        assert info["version"] == 2 or listing(path) == before
        save_parts(path, 3, first, second)
        assert (load_directory(path)[0]["series.1"]["body"] == 2).all() and set(listing(path)) == named(path)
    assert outcomes == sorted(outcomes) and outcomes.count(1) > 25 and outcomes.count(2) > 3


# --- saves that fail ----------------------------------------------------------------------------


class FullDisk:
    """Lets a given number of the disk's steps pass and fails the next, a write halfway through."""

    def __init__(self, patch: pytest.MonkeyPatch, passing: int) -> None:
        self.left = passing
        self.failed = ""
        disk = self

        class Handle(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.refuses("write"):
                    super().write(data[: len(data) // 2])
                    raise full()
                return super().write(data)

        def fake_open(path: Path, mode: str) -> Any:
            if disk.refuses("open"):
                raise full()
            return Handle(path, mode.replace("b", ""))

        def step(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                if disk.refuses(name):
                    raise full()
                return real(*args)

            return call

        def full() -> OSError:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(staging, "open", fake_open, raising=False)
        patch.setattr(os, "fsync", step("fsync", os.fsync))
        patch.setattr(os, "replace", step("replace", os.replace))

    def refuses(self, step: str) -> bool:
        self.left -= 1
        if self.left == -1:
            self.failed = step
        return self.left == -1


@pytest.mark.parametrize("first", [False, True], ids=["over an old memory", "first save"])
def test_a_full_disk_at_every_step(tmp_path: Path, first: bool) -> None:
    failed = []
    committed = 0
    for passing in range(100):
        path = tmp_path / f"{passing}"
        if not first:
            save_version(path, 1)
        before = listing(path) if path.exists() else {}
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, passing)
            if not raises_full_disk(partial(save_version, path, 2)):
                break
        failed.append(disk.failed)
        if (path / "manifest.json").exists() and load_version(path) == 2:
            committed += 1  # only the last syncs come after the commit, and then both memories stay
            assert before.keys() <= listing(path).keys()
        else:
            left = listing(path) if path.exists() else {}
            left.pop(".lock", None)
            before.pop(".lock", None)
            assert left == before
        save_version(path, 3)
        assert load_version(path) == 3
        assert set(listing(path)) == named(path)
    assert disk.failed == ""
    assert committed == 2
    # the note, two data files, the manifest, and the syncs of the directory and of its parent
    write = ["open", "write", "fsync"]
    before_commit = [*write, "fsync", *write * 3, "fsync"]
    assert failed == [*["fsync"][: int(first)], *before_commit, "replace", "fsync", "fsync"]


def raises_full_disk(save: Callable[[], None]) -> bool:
    """Whether the save failed, which must be with a plain sentence and its cause."""
    error: MemoryFileError | None = None
    try:
        save()
    except MemoryFileError as caught:
        error = caught
    if error is None:
        return False
    assert type(error) is MemoryFileError
    assert isinstance(error.__cause__, OSError)
    assert error.__cause__.errno == errno.ENOSPC
    assert "No space left on device" in str(error)
    return True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small disk: {getattr(error, 'stderr', '') or error}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "memory"
    with pytest.raises(MemoryFileError):
        save_version(path, 1, numel=200_000)
    assert set(listing(path)) <= {".lock"}
    save_version(path, 1, numel=15_000)
    before = listing(path)
    for numel in (50_000, 70_000, 200_000):  # the third, the second and the first file do not fit
        assert raises_full_disk(partial(save_version, path, 5, numel=numel))
        assert listing(path) == before
    save_version(path, 2, numel=15_000)
    assert load_version(path) == 2
    assert set(listing(path)) == named(path)


def stop_at_line(number: int, stop: Callable[[], None]) -> Callable[..., Any]:
    """A trace function that calls ``stop`` before the given line that files.py executes."""
    seen = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal seen
        if frame.f_code.co_filename not in OUR_FILES:
            return None
        if event == "line":
            seen += 1
            if seen == number:
                stop()
        return trace

    return trace


def interrupt() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_at_every_line(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    outcomes = []
    for number in range(1, 1000):
        save_version(path, 1)
        before = listing(path)
        old_trace = sys.gettrace()
        sys.settrace(stop_at_line(number, interrupt))
        try:
            save_version(path, 2)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(old_trace)
        outcomes.append(load_version(path))
        if outcomes[-1] == 1:
            assert listing(path) == before
    assert outcomes == sorted(outcomes)
    assert outcomes.count(1) > 50
    assert outcomes.count(2) > 5
    save_version(path, 3)
    assert set(listing(path)) == named(path)


def test_a_tensor_that_cannot_be_saved_leaves_the_old_memory(memory: Path) -> None:
    before = listing(memory)
    sparse = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError):
        save_directory(memory, {"a": {"a": torch.ones(2)}, "b": {"b": sparse}}, {})
    assert listing(memory) == before


# --- one writer, many readers -------------------------------------------------------------------

HOLDER = """
import sys, filelock
with filelock.FileLock(sys.argv[1], timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_readers_are_not(memory: Path) -> None:
    before = listing(memory)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(memory / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(MemoryLockedError, match="Another process"):
            save_version(memory, 2)
        assert load_version(memory) == 1
        assert verify_directory(memory) == []
        assert listing(memory) == before
        holder.kill()
    save_version(memory, 2)
    assert load_version(memory) == 2


def test_an_only_writer_may_save_and_leaves_nothing_where_nothing_was_saved(tmp_path: Path) -> None:
    place = tmp_path / "new" / "memory"
    with pytest.raises(ZeroDivisionError), only_writer(place):
        raise ZeroDivisionError
    assert not place.exists()
    with only_writer(place):
        save_version(place, 1)
        save_version(place, 2)
    assert load_version(place) == 2


def test_an_only_writer_keeps_other_processes_out_until_it_is_done(memory: Path) -> None:
    program = "import sys, filelock\nfilelock.FileLock(sys.argv[1], timeout=0).acquire()"
    other = [sys.executable, "-c", program, str(memory / ".lock")]
    with only_writer(memory):
        save_version(memory, 2)
        assert subprocess.run(other, capture_output=True).returncode == 1
    assert subprocess.run(other, capture_output=True).returncode == 0


def commit_after_manifest(patch: pytest.MonkeyPatch, memory: Path, commits: int) -> None:
    """Let a writer commit right after each of the first manifests that a reader reads."""
    real = files.read_manifest
    left = commits

    def read(directory: Path) -> Any:
        nonlocal left
        found = real(directory)
        if left:
            left -= 1
            with pytest.MonkeyPatch.context() as inner:
                inner.setattr(files, "read_manifest", real)
                save_version(memory, found.info["version"] + 1)
        return found

    patch.setattr(files, "read_manifest", read)


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_reader_starts_again_when_a_writer_commits(
    memory: Path, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    commit_after_manifest(monkeypatch, memory, commits)
    assert load_version(memory) == 1 + commits
    commit_after_manifest(monkeypatch, memory, commits)
    assert verify_directory(memory) == []


def test_a_reader_gives_up_with_a_name_when_writers_never_pause(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_after_manifest(monkeypatch, memory, 1000)
    with pytest.raises(MemoryLockedError, match="again and again"):
        load_directory(memory)
    monkeypatch.undo()
    assert verify_directory(memory) == []


# --- kill -9, in a process of its own -----------------------------------------------------------


def fork(body: Callable[[], None]) -> int:
    """Run ``body`` in a child, which never returns from here."""
    child = os.fork()
    if child == 0:
        try:
            body()
        finally:
            os._exit(0)
    return child


def check_after_kill(path: Path, at_least: int) -> int:
    """Check what a killed writer left and that a next save works; return its version or 0."""
    try:
        version = load_version(path)
    except MemoryMissingError:
        version = 0
    assert version >= at_least, f"{version} is older than {at_least}, which was saved"
    save_version(path, version + 2)
    assert load_version(path) == version + 2
    assert set(listing(path)) == named(path)
    return version


def task_random_moments(root: Path) -> None:
    """Kill a child that saves without end, 60 times; every fourth time it starts with no memory."""
    rng = random.Random(os.getpid())
    interrupted = 0
    for number in range(60):
        path = root / f"{number // 4}"
        start = load_version(path) + 1 if path.exists() else 1
        reader, writer = os.pipe()

        def save_without_end(path: Path = path, version: int = start, out: int = writer) -> None:
            while True:
                save_version(path, version, numel=200_000)
                os.write(out, version.to_bytes(8, "big"))
                version += 1

        child = fork(save_without_end)
        os.close(writer)
        if number % 3:
            os.read(reader, 8)  # a save has returned: it must not be lost
        time.sleep(rng.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = b"".join(iter(partial(os.read, reader, 8), b""))
        os.close(reader)
        returned = int.from_bytes(told[-8:], "big") if told else start - 1
        if number % 3:
            returned = max(returned, start)
        if path.exists():
            manifest = path / "manifest.json"
            interrupted += set(listing(path)) != (named(path) if manifest.exists() else {".lock"})
            found = check_after_kill(path, returned)
            assert found != 0 or start == 1
    sys.stdout.write(str(interrupted))


def task_every_line(root: Path) -> None:
    """Kill a child before every line of a save over a memory, every third of a first save."""
    for first in (False, True):
        found = set()
        for number in range(1, 1000, 3 if first else 1):
            path = root / f"{first}{number if first else ''}"
            if not first:
                save_version(path, 1)

            def save_and_die(path: Path = path, number: int = number) -> None:
                sys.settrace(stop_at_line(number, lambda: os.kill(os.getpid(), signal.SIGKILL)))
                save_version(path, 2)

            _, status = os.waitpid(fork(save_and_die), 0)
            if not os.WIFSIGNALED(status):
                break
            if not path.exists():
                continue
            assert verify_or_none(path) in ([], None)
            found.add(check_after_kill(path, 0 if first else 1))
        assert number > 100
        assert found == ({0, 2} if first else {1, 2})


def verify_or_none(path: Path) -> list[str] | None:
    try:
        return verify_directory(path)
    except MemoryMissingError:
        return None


def task_busy_reader(root: Path) -> None:
    """Read while a child saves without end: always one version, never an older one than before."""
    path = root / "memory"
    save_version(path, 1, numel=20_000)

    def save_without_end() -> None:
        for version in range(2, 10**9):
            save_version(path, version, numel=20_000)

    child = fork(save_without_end)
    versions = [1]
    try:
        while len(versions) < 100 or versions[-1] < 20:
            try:
                versions.append(load_version(path))
            except MemoryLockedError:
                continue
            assert versions[-1] >= versions[-2]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


TASKS = {
    "random_moments": task_random_moments,
    "every_line": task_every_line,
    "busy_reader": task_busy_reader,
}


def run_task(name: str, root: Path) -> str:
    command = [sys.executable, __file__, name, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_kill_at_random_moments(tmp_path: Path) -> None:
    interrupted = int(run_task("random_moments", tmp_path))
    assert interrupted > 0  # else no kill came in the middle of a save and nothing was tested


def test_kill_before_every_line(tmp_path: Path) -> None:
    run_task("every_line", tmp_path)


def test_a_reader_beside_a_writer(tmp_path: Path) -> None:
    run_task("busy_reader", tmp_path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    TASKS[sys.argv[1]](Path(sys.argv[2]))
