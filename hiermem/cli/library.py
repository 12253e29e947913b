"""`hiermem add`, `list`, `remove`, `export`: documents come to a library, and go."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli.asking import ReadDtype, ReadModel, ReadQuantize
from hiermem.cli.library_model import library_model
from hiermem.cli.signals import Stopped, stoppable
from hiermem.errors import InputError
from hiermem.progress import say

if TYPE_CHECKING:
    from hiermem.library.entries import Added, DocumentEntry
    from hiermem.library.workers import Workers
    from hiermem.model import HierMemModel

LibraryDir = Annotated[Path, typer.Argument(help="Folder of a library.", metavar="LIB")]
Name = Annotated[str, typer.Argument(help="Name of a document, as hiermem list shows it.")]


def add(
    lib: Annotated[Path, typer.Argument(help="Folder of the library; made where there is none.")],
    files: Annotated[
        list[Path],
        typer.Argument(help="Text, Markdown, HTML, PDF, EPUB or DOCX files, or folders of such."),
    ],
    index: opt.IndexOrRead = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Read in so many processes, each with a model (extra ray)."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Ray cluster of the workers, such as ray://host:10001; default: this machine."),
    ] = None,
    model: ReadModel = None,
    preset: opt.Preset = None,
    dtype: ReadDtype = None,
    quantize: ReadQuantize = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Add documents to a library, or make one.

    Files that are there unchanged are left out, and changed ones take the place of their older version.
    Stopped by Ctrl-C, SIGTERM or SIGHUP, documents that were added stay; the same command goes on.

    Examples:

        hiermem add papers harbour.pdf notes.md

        hiermem add papers downloads --json

        hiermem add books *.epub --read

        hiermem add books shelf --workers 4 --address ray://head:10001
    """
    from hiermem.library.catalogue import is_library
    from hiermem.library.files import found_files
    from hiermem.library.shelves import check_place
    from hiermem.library.workers import Workers

    check_place(lib)  # before the model is loaded
    if preset is not None and is_library(lib):
        raise InputError(f"{lib} is a library, which has settings of its own: leave --preset out.")
    found = found_files(files)
    opt.check_numbers(dtype, device)
    config = opt.configuration(model or "smollm2", preset) if preset else None
    if address is not None and workers is None:
        raise InputError("--address is of workers: give their number by --workers, too.")
    load = partial(library_model, lib.absolute(), model, config, dtype, quantize, device)
    start = time.perf_counter()
    if workers is None:
        outcomes = list(_added(lib, found, load, index))
    else:
        outcomes = list(_added_by_workers(lib, found, Workers(workers, load, address), index))
    failures = [each for each in outcomes if isinstance(each, Failed)]
    if len(failures) == len(outcomes) == 1:
        raise InputError(failures[0].error)
    _report(lib, outcomes, time.perf_counter() - start, json)
    if failures:
        raise typer.Exit(1)


@dataclass(frozen=True)
class Failed:
    """A file that could not be added, and why."""

    name: str
    error: str


def _report(lib: Path, outcomes: "Sequence[Added | Failed]", seconds: float, json: bool) -> None:
    """Print what became of each file."""
    rows, lines, tokens = [], [], 0
    for each in outcomes:
        if isinstance(each, Failed):
            rows.append({"name": each.name, "outcome": "failed", "error": each.error})
            lines.append(f"   failed  {each.name}  {each.error}")
            continue
        rows.append({"name": each.name, "outcome": each.outcome, **_facts(each.entry)})
        lines.append(f"{each.outcome:>9}  {_line(each.entry)}")
        tokens += 0 if each.outcome == "unchanged" else each.entry.tokens
    result = {"library": str(lib), "documents": rows, "seconds": seconds, "new_tokens": tokens}
    total = f"{_count(len(rows), 'document')} in {seconds:.1f} s, {tokens} new tokens."
    opt.emit(result, json, "\n".join([*lines, total]))


def _added(
    lib: Path, files: "list[tuple[str, Path]]", load: "Callable[[], HierMemModel]", index: bool | None
) -> "Iterator[Added | Failed]":
    """Add files in this process."""
    from hiermem.library.library import Library

    reader, done = load(), 0
    with stoppable() as stop, Library.open(lib, reader, index=index) as library, library.writer():
        try:
            for name, path in files:
                stop.check()
                try:
                    yield library.add_file(name, path, on_reading=lambda _: stop.check())
                    done += 1
                except InputError as error:
                    yield Failed(name, str(error))
        except Stopped:
            say(f"hiermem: stopped after {_count(done, 'document')}; the same command goes on.")
            raise
        stop.done()


def _added_by_workers(
    lib: Path, files: "list[tuple[str, Path]]", workers: "Workers", index: bool | None
) -> "Iterator[Added]":
    """Add files in other processes."""
    from hiermem.library.catalogue import is_library
    from hiermem.library.library import Library

    if not is_library(lib) or index is not None:
        Library.open(lib, workers.load(), index=index).close()
    with stoppable() as stop:
        for added in workers.add(lib, files):
            stop.check()
            yield added
        stop.done()


def list_documents(lib: LibraryDir, json: opt.Json = False) -> None:
    """List the documents of a library.

    Example:

        hiermem list papers
    """
    from hiermem.library.catalogue import Catalogue
    from hiermem.library.unfinished import unfinished_names

    entries, unfinished = Catalogue(lib).documents(), unfinished_names(lib)
    rows = [{"name": entry.name, **_facts(entry)} for entry in entries]
    size, tokens = sum(entry.bytes for entry in entries), sum(entry.tokens for entry in entries)
    segments = _count(sum(entry.segments for entry in entries), "segment")
    total = f"{_count(len(entries), 'document')}, {tokens} tokens in {segments}, {_size(size)}."
    begun = [f"{name}  not finished: add it again to go on, or remove it" for name in unfinished]
    result = {"library": str(lib), "documents": rows, "bytes": size, "unfinished": unfinished}
    opt.emit(result, json, "\n".join([*map(_line, entries), *begun, total]))


def remove(
    lib: LibraryDir,
    names: Annotated[list[str], typer.Argument(help="Names of documents, as hiermem list shows them.")],
    json: opt.Json = False,
) -> None:
    """Remove documents from a library; nothing of them stays in its folder.

    Example:

        hiermem remove papers harbour.pdf
    """
    from hiermem.library.catalogue import Catalogue
    from hiermem.library.shelves import Shelves

    catalogue = Catalogue(lib)
    shelves = Shelves(lib, catalogue)
    with shelves.writer():
        for name in names:
            if name not in shelves.unfinished():
                catalogue.document(name)  # which refuses what is not there, before anything goes
        for name in dict.fromkeys(names):
            shelves.remove(name)
    opt.emit({"library": str(lib), "removed": names}, json, f"Removed {', '.join(names)}.")


def export(
    lib: LibraryDir,
    name: Name,
    out: Annotated[Path, typer.Option(help="Folder to keep the memory in.")],
    json: opt.Json = False,
) -> None:
    """Copy the memory of a document out of a library; `ask` and `read --append` take it.

    Example:

        hiermem export papers harbour.pdf --out harbour.hmem
    """
    from hiermem.library.catalogue import Catalogue
    from hiermem.library.shelves import Shelves

    catalogue = Catalogue(lib)
    Shelves(lib, catalogue).export(catalogue.document(name), out)
    opt.emit({"library": str(lib), "name": name, "out": str(out)}, json, f"The memory of {name} is at {out}.")


def _facts(entry: "DocumentEntry") -> dict[str, Any]:
    return {name: value for name, value in vars(entry).items() if name not in ("name", "folder", "source")}


def _line(entry: "DocumentEntry") -> str:
    pages = f", {_count(entry.pages, 'page')}" if entry.pages else ""
    return (
        f"{entry.name}  {entry.kind}{pages}, {entry.tokens} tokens in {_count(entry.segments, 'segment')}, "
        f"{_size(entry.bytes)}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _size(count: int) -> str:
    """A number of bytes for a person to read."""
    return opt.mib(count) if count >= 1 << 20 else f"{count / 1024:.0f} KiB"
