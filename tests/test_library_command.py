"""`hiermem add`, `list`, `ask`, `remove`, `export` and `verify` of a library."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import assert_refused, result, run
from document_makers import make_book_pdf, make_epub
from readers import text_of

from hiermem import Library
from hiermem.library.catalogue import Catalogue

FEW = ("--max-new-tokens", 8)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a PDF, an EPUB and a text."""
    folder = tmp_path_factory.mktemp("files")
    pages = [
        ("Harbour", "The harbour master is Mary Quill. " * 3),
        ("Orion", "The captain is Jonas Hale. " * 3),
    ]
    (folder / "harbour.pdf").write_bytes(make_book_pdf(pages))
    (folder / "lights.epub").write_bytes(make_epub("Lights", [("First light", "The keeper is Tom Pound.")]))
    (folder / "two words ü.txt").write_text("A line.\nThe ferry leaves at seven.\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def library(files: Path, wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of these files."""
    lib = tmp_path_factory.mktemp("libraries") / "lib"
    added = result("add", lib, *sorted(files.iterdir()), "--model", wide_model, "--index")
    assert [row["outcome"] for row in added["documents"]] == ["added"] * 3
    assert list(added) == ["library", "documents", "seconds", "new_tokens"] and added["new_tokens"] > 0
    return lib


def test_documents_are_listed(library: Path) -> None:
    listed = result("list", library)
    rows = {row["name"]: row for row in listed["documents"]}
    assert set(rows) == {"harbour.pdf", "lights.epub", "two words ü.txt"}
    names = "name id kind sha256 tokens segments characters pages bytes added"
    assert all(list(row) == names.split() for row in rows.values())
    assert rows["harbour.pdf"]["pages"] >= 1 and rows["lights.epub"]["kind"] == "epub"
    assert listed["bytes"] == sum(row["bytes"] for row in rows.values())
    assert b"two words" in run("list", library).stdout


def test_answers_name_document_and_place(library: Path, wide_model: Path) -> None:
    ask = ("ask", library, "--model", wide_model, *FEW)
    answer = result(*ask, "Who is the harbour master?")
    assert answer["sources"][0]["document"] == "harbour.pdf" and answer["sources"][0]["page"] == 1
    ferry, keeper = result(*ask, "When leaves the ferry?", "Who is the keeper?")
    assert (ferry["sources"][0]["document"], ferry["sources"][0]["line"]) == ("two words ü.txt", 2)
    assert keeper["sources"][0]["chapter"] == "First light"
    only = result(*ask, "Who is the keeper?", "--document", "harbour.pdf")
    assert all(source["document"] == "harbour.pdf" for source in only["sources"])
    assert result(*ask, "Who is the harbour master?", "--before", 1)["sources"] == []
    assert b"harbour.pdf, page 1" in run(*ask, "Who is the harbour master?").stdout


def test_what_was_added_is_left_out(library: Path, files: Path, wide_model: Path) -> None:
    again = result("add", library, files / "harbour.pdf", "--model", wide_model)
    assert [row["outcome"] for row in again["documents"]] == ["unchanged"] and again["new_tokens"] == 0


def test_a_document_is_exported_and_removed(library: Path, wide_model: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("The note is about rope.", encoding="utf-8")
    result("add", library, note, "--model", wide_model)
    exported = result("export", library, "note.txt", "--out", tmp_path / "note.hmem")
    assert exported == {"library": str(library), "name": "note.txt", "out": str(tmp_path / "note.hmem")}
    asked = result("ask", tmp_path / "note.hmem", "What is the note about?", "--model", wide_model, *FEW)
    assert asked["sources"][0]["text"].strip() == "The note is about rope."
    assert result("remove", library, "note.txt")["removed"] == ["note.txt"]
    assert_refused(run("remove", library, "note.txt"), "There is no document 'note.txt'")
    assert result("verify", library) == {"ok": True, "problems": []}


def test_damage_has_status_1(library: Path, tmp_path: Path, wide_model: Path) -> None:
    lib = tmp_path / "lib"
    (tmp_path / "a.txt").write_text("Some words.", encoding="utf-8")
    result("add", lib, tmp_path / "a.txt", "--model", wide_model)
    index = next(lib.rglob("index.safetensors"))
    index.write_bytes(index.read_bytes()[:-8] + b"damaged!")
    done = run("verify", lib)
    assert done.returncode == 1 and b"a.txt' is damaged" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["add", "NEW", "missing.txt"], "There is no file 'missing.txt'"),
        (["add", "FILE", "README.md"], "is a file"),
        (["add", "LIB", "README.md", "--address", "ray://x:1"], "give their number by --workers"),
        (["list", "NEW"], "There is no library at"),
        (["remove", "LIB", "none"], "There is no document 'none'"),
        (["export", "LIB", "none", "--out", "NEW"], "There is no document 'none'"),
        (["ask", "LIB", "Why?", "--policy", "window"], "leave --policy out"),
        (["ask", "LIB", "Why?", "--set", "asking.rerank=2"], "leave --set out"),
        (["ask", "LIB", " "], "The question is empty"),
        (["ask", "LIB", "Why?", "--document", "none"], "There is no document 'none'"),
        (["ask", "LIB", "Why?", "--before", "0"], "Pages count from 1"),
    ],
)
def test_bad_input_gets_one_sentence(
    arguments: list[str], expected: str, library: Path, wide_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    places = {"NEW": tmp_path / "new", "FILE": tmp_path / "file", "LIB": library}
    given = [places.get(argument, argument) for argument in arguments]
    model = ["--model", wide_model] if arguments[0] in ("ask", "add") else []
    assert_refused(run(*given, *model), expected)
    assert not (tmp_path / "new").exists()


def test_one_bad_file_does_not_keep_others_out(tmp_path: Path, wide_model: Path) -> None:
    folder = tmp_path / "mix"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(b"%PDF-1.4 broken")
    (folder / "b.txt").write_text("The ferry leaves at seven.", encoding="utf-8")
    done = run("add", tmp_path / "lib", folder, "--model", wide_model, "--index", "--json")
    assert done.returncode == 1
    bad, good = json.loads(done.stdout)["documents"]
    assert (bad["name"], bad["outcome"]) == ("mix/a.pdf", "failed") and "mix/a.pdf" in bad["error"]
    assert (good["name"], good["outcome"]) == ("mix/b.txt", "added")
    assert_refused(run("remove", tmp_path / "lib", "mix/b.txt", "nope"), "There is no document 'nope'")
    assert len(result("list", tmp_path / "lib")["documents"]) == 1  # nothing was removed
    refused = run("add", tmp_path / "lib", folder, "--model", wide_model, "--preset", "bare")
    assert_refused(refused, "leave --preset out")


def test_a_stranger_library_does_not_choose_the_model(library: Path) -> None:
    assert_refused(run("ask", library, "Why?"), "give the model by --model if you trust it")


def test_a_stopped_addition_goes_on(tmp_path: Path, wide_model: Path) -> None:
    """SIGTERM within a document: its status says so, and the same command ends it."""
    text, lib = tmp_path / "long.txt", tmp_path / "lib"
    text.write_text(text_of(8_000, seed=4), encoding="utf-8")
    command = [sys.executable, "-m", "hiermem.cli.main", "add", str(lib), str(text)]
    command += ["--model", str(wide_model), "--read"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as adding:
        while not any((lib / "incoming").glob("*/name")):
            assert adding.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)
        adding.send_signal(signal.SIGTERM)
        assert adding.stderr is not None and b"stopped" in adding.stderr.read()
    assert adding.returncode == 128 + signal.SIGTERM
    assert Catalogue(lib).documents() == [] and result("list", lib)["unfinished"] == ["long.txt"]
    assert result("add", lib, text, "--model", wide_model)["documents"][0]["outcome"] == "added"
    assert result("verify", lib)["ok"]


def test_the_library_is_a_public_name() -> None:
    assert Library.__module__ == "hiermem.library.library"
