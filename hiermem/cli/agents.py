"""`hiermem mcp`: a library as tools of an agent."""

from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.cli.asking import ReadDtype, ReadModel, ReadQuantize
from hiermem.cli.library_model import library_model
from hiermem.errors import InputError


def mcp(
    lib: Annotated[Path, typer.Argument(help="Folder of the library; made where there is none.")],
    files: Annotated[
        Path | None, typer.Option(help="Folder whose files agents may add; default: they add no files.")
    ] = None,
    model: ReadModel = None,
    dtype: ReadDtype = None,
    quantize: ReadQuantize = None,
    device: opt.Device = None,
) -> None:
    """Serve a library to an agent over standard input and output (MCP): ask, search, list, add, remove.

    Examples:

        hiermem mcp papers

        hiermem mcp papers --files ~/Downloads
    """
    try:
        from hiermem.integrations.mcp import mcp_server
    except ImportError as error:
        raise InputError("The MCP server needs the extra mcp: pip install 'hiermem-torch[mcp]'.") from error
    from hiermem.library import Library

    if files is not None and not files.is_dir():
        raise InputError(f"There is no folder {files}: give one to --files.")

    def open_library() -> Library:
        return Library.open(lib, library_model(lib, model, None, dtype, quantize, device))

    opt.check_numbers(dtype, device)
    mcp_server(open_library, files).run()
