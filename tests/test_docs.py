"""The README and the site say what is there: files, commands, options and names that they mention exist."""

import ast
import importlib
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

import hiermem
from hiermem.cli.main import app
from hiermem.config import PRESETS
from hiermem.memory.policies import POLICIES
from hiermem.training.recipes import TRAININGS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")], key=lambda page: str(page)
)
FOLDERS = ("hiermem", "memory", "retrieval", "eval", "training")
RECORDS = ("lab-notes", "results")
"""Folders of pages that say what was done once, by the names of then."""

PRESENT = [page for page in PAGES if page.parent.name not in RECORDS]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every `hiermem …` of a page, in blocks of shell and in the text, split into words."""
    text = page.read_text("utf-8")
    inline = [code.replace("\n", " ") for code in re.findall(r"`(hiermem [a-z][^`]*)`", text)]
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    whole = [*inline, *(line for line in lines if line.startswith("hiermem "))]
    return [shlex.split(line, comments=True)[1:] for line in whole]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files(page: Path) -> None:
    """Anchors, and links within the site, are checked where it is built, too."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target = link.split("#")[0]
        if target and "://" not in target:
            assert (page.parent / target).exists(), link


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    for words in commands(page):
        if words[0] == "lm-eval":  # its options are lm-evaluation-harness's own
            continue
        found, names = get_command(app), []
        while hasattr(found, "commands") and words and not words[0].isupper():
            assert words[0] in found.commands, f"hiermem {' '.join([*names, words[0]])}"
            names.append(words[0])
            found, words = found.commands[words[0]], words[1:]
        known = {option for parameter in found.params for option in parameter.opts}
        for word in words:
            if word.startswith("--") and not hasattr(found, "commands"):
                assert word.split("=")[0] in known | {"--help"}, f"hiermem {' '.join(names)} {word}"


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_python_blocks_import_what_exists(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hiermem"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), block


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    folders = r"hiermem|memory|retrieval|eval|training|benchmarks|examples|tests|docs"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", page.read_text("utf-8")):
        assert (ROOT / path).exists() or "NAME" in path, path


def test_the_map_has_every_module_and_no_other() -> None:
    """The architecture page gives each module its place."""
    named = set(re.findall(r"\b\w+\.py\b", (ROOT / "docs" / "architecture.md").read_text("utf-8")))
    files = [path for folder in (*FOLDERS, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    unlisted = ("cli", "methods", "policies", "tasks")  # one file for each command, method, policy, task
    modules = {path.name for path in files if path.parent.name not in unlisted}
    assert modules - named - {"__init__.py"} == set()
    assert named - {path.name for path in files} == set()


def test_what_can_be_chosen_by_name_is_documented() -> None:
    names = ("index.md", "concepts.md", "training.md")
    start, concepts, training = ((ROOT / "docs" / name).read_text("utf-8") for name in names)
    assert all(f"| `{name}` |" in start for name in PRESETS)
    assert all(f"| `{name}` |" in training for name in TRAININGS)
    own = {policy.name for policy in POLICIES.values() if policy.__module__.startswith("hiermem.")}
    assert all(f"`{name}`" in concepts for name in own)


def test_every_public_name_is_in_the_reference() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs" / "reference").glob("*.md"))
    for name in hiermem.__all__:
        home = getattr(hiermem, name).__module__
        assert f"::: {home}.{name}\n" in pages or f"::: {home}\n" in pages, f"{home}.{name}"


def documented(docstring: str, section: str) -> list[str]:
    """The entries of a section of a docstring, such as ``Args``."""
    block = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", docstring, re.MULTILINE)
    entries = r"^    ([*\w]+(?:, [*\w]+)*)(?: \(.*\))?:"
    return re.findall(entries, block[1], re.MULTILINE) if block else []


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Fields, methods and what is assigned to ``self``."""
    annotated = (part.target for part in node.body if isinstance(part, ast.AnnAssign))
    fields = {target.id for target in annotated if isinstance(target, ast.Name)}
    methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
    used = (part for part in ast.walk(node) if isinstance(part, ast.Attribute))
    own = {part.attr for part in used if isinstance(part.value, ast.Name) and part.value.id == "self"}
    return fields | methods | own


def arguments_of(node: ast.FunctionDef) -> set[str]:
    """Names of all arguments of a function."""
    return {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}


def wrong_entries(node: ast.AST) -> list[str]:
    """Entries of the docstring of a function or class that are not there, or several in one."""
    if isinstance(node, ast.FunctionDef):
        entries, there = documented(ast.get_docstring(node) or "", "Args"), arguments_of(node)
    elif isinstance(node, ast.ClassDef):
        docstring, there = ast.get_docstring(node) or "", attributes_of(node)
        entries = documented(docstring, "Attributes")
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                there |= arguments_of(part)
                entries += documented(docstring, "Args")
    else:
        return []
    return [entry for entry in entries if entry.strip("*") not in there]


def test_docstrings_name_what_is_there() -> None:
    """One parameter a line, as the reference shows them; each exists."""
    wrong = []
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            wrong += [f"{where}: {entry}" for entry in wrong_entries(node)]
    assert not wrong, wrong


def test_docstrings_begin_with_a_noun_or_a_verb() -> None:
    folders = (ROOT / folder for folder in (*FOLDERS, "benchmarks", "examples"))
    files = (path for folder in folders for path in folder.rglob("*.py"))
    assert not [str(path) for path in files if '"""What ' in path.read_text("utf-8")]


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"\nversion: {project['version']}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
