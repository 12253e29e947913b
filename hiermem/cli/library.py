"""`hiermem add`, `list`, `remove`, `export`: documents come to a library, and go."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hiermem.cli import options as opt
from hiermem.cli.asking import ReadDtype, ReadModel, ReadQuantize
from hiermem.cli.library_model import library_model
from hiermem.cli.signals import stoppable
from hiermem.errors import InputError, MemoryMissingError

if TYPE_CHECKING:
    from hiermem.library.catalogue import Catalogue
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
    index: Annotated[
        bool | None,
        typer.Option(
            "--index/--read",
            help="Of a new library: leave the backbone out, which is much faster, or let it read every "
            "document; default: --index where no search key or tier is made by it.",
        ),
    ] = None,
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
    from hiermem.library.files import found_files
    from hiermem.library.shelves import check_place
    from hiermem.library.workers import Workers

    check_place(lib)  # before the model is loaded
    found = found_files(files)
    opt.check_numbers(dtype, device)
    config = opt.configuration(model or "smollm2", preset) if preset else None
    if address is not None and workers is None:
        raise InputError("--address is of workers: give their number by --workers, too.")
    load = partial(library_model, lib.absolute(), model, config, dtype, quantize, device)
    start = time.perf_counter()
    if workers is None:
        added = list(_added(lib, found, load, index))
    else:
        added = list(_added_by_workers(lib, found, Workers(workers, load, address), index))
    seconds = time.perf_counter() - start
    rows = [{"name": each.name, "outcome": each.outcome, **_facts(each.entry)} for each in added]
    words = "\n".join(f"{each.outcome:>9}  {_line(each.entry)}" for each in added)
    tokens = sum(each.entry.tokens for each in added if each.outcome != "unchanged")
    total = f"{len(added)} documents in {seconds:.1f} s, {tokens} new tokens."
    result = {"library": str(lib), "documents": rows, "seconds": seconds, "new_tokens": tokens}
    opt.emit(result, json, f"{words}\n{total}")


def _added(
    lib: Path, files: "list[tuple[str, Path]]", load: "Callable[[], HierMemModel]", index: bool | None
) -> "Iterator[Added]":
    """Add files in this process."""
    from hiermem.library.library import Library

    reader = load()
    with stoppable() as stop, Library.open(lib, reader, index=index) as library:
        for name, path in files:
            stop.check()
            yield library.add_file(name, path, on_reading=lambda _: stop.check())
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
    catalogue = _catalogue(lib)
    entries = catalogue.documents()
    rows = [{"name": entry.name, **_facts(entry)} for entry in entries]
    size = sum(entry.bytes for entry in entries)
    total = (
        f"{len(entries)} documents, {sum(e.tokens for e in entries)} tokens in "
        f"{sum(e.segments for e in entries)} segments, {opt.mib(size)}."
    )
    result = {"library": str(lib), "documents": rows, "bytes": size}
    opt.emit(result, json, "\n".join([*map(_line, entries), total]))


def remove(
    lib: LibraryDir,
    names: Annotated[list[str], typer.Argument(help="Names of documents, as hiermem list shows them.")],
    json: opt.Json = False,
) -> None:
    """Remove documents from a library; nothing of them stays in its folder.

    Example:

        hiermem remove papers harbour.pdf
    """
    from hiermem.library.shelves import Shelves

    shelves = Shelves(lib, _catalogue(lib))
    for name in names:
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
    from hiermem.library.shelves import Shelves

    catalogue = _catalogue(lib)
    Shelves(lib, catalogue).export(catalogue.document(name), out)
    opt.emit({"library": str(lib), "name": name, "out": str(out)}, json, f"The memory of {name} is at {out}.")


def _catalogue(lib: Path) -> "Catalogue":
    from hiermem.library.catalogue import Catalogue

    if not lib.is_dir():
        raise MemoryMissingError(
            f"There is no library at {lib}: check the path, or add a document to make one."
        )
    return Catalogue(lib)


def _facts(entry: "DocumentEntry") -> dict[str, Any]:
    facts = dict(vars(entry))
    for name in ("name", "folder"):
        del facts[name]
    return facts


def _line(entry: "DocumentEntry") -> str:
    pages = f", {entry.pages} pages" if entry.pages else ""
    return (
        f"{entry.name}  {entry.kind}{pages}, {entry.tokens} tokens in {entry.segments} segments, "
        f"{opt.mib(entry.bytes)}"
    )
