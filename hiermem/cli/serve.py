"""`hiermem serve`: a library as a service, with OpenAI's HTTP interface and a page."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from hiermem.cli import options as opt
from hiermem.cli.asking import ReadDtype, ReadModel, ReadQuantize
from hiermem.errors import InputError

_PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def serve(
    lib: Annotated[
        Path, typer.Argument(help="Folder of a library; made where there is none.", metavar="LIB")
    ],
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Another than this machine's own needs an --api-key.")
    ] = "127.0.0.1",
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Key that clients must show; repeatable. Other users of this machine see a command line: "
            "the environment variable keeps it to you.",
            envvar="HIERMEM_API_KEY",
            show_envvar=True,
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name that the service may be called by, such as a proxy's; repeatable."),
    ] = None,
    requests_per_minute: Annotated[
        int, typer.Option(min=0, help="Requests of one client in a minute; 0: any number.")
    ] = 240,
    max_upload: Annotated[int, typer.Option(min=1, help="MiB of an uploaded file.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Limit of an answer in tokens.")] = 512,
    max_queue: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 64,
    index: opt.IndexOrRead = None,
    model: ReadModel = None,
    dtype: ReadDtype = None,
    quantize: ReadQuantize = None,
    device: opt.Device = None,
) -> None:
    """Serve a library: a page in the browser, and OpenAI's HTTP interface for programs.

    The service listens at once and answers when the model is loaded. Ctrl-C and SIGTERM end it in order; what
    was uploaded and every finished answer are kept even if it is killed.

    Examples:

        hiermem serve papers

        hiermem serve papers --port 9000 --model smollm2

        HIERMEM_API_KEY=… hiermem serve papers --host 0.0.0.0
    """
    _check_installed()
    from hiermem.cli.library_model import library_model
    from hiermem.cli.terminal import write
    from hiermem.server.running import serve as run
    from hiermem.server.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        allowed_hosts=tuple(allowed_host or ()),
        requests_per_minute=requests_per_minute,
        max_upload_bytes=max_upload << 20,
        max_new_tokens=max_new_tokens,
        max_queue=max_queue,
    )
    opt.check_numbers(dtype, device)  # before anything listens
    run(
        lambda: library_model(lib, model, None, dtype, quantize, device),
        lib,
        settings,
        index,
        lambda address: write(f"{lib} is served at {address} (Ctrl-C ends)\n"),
    )


def _check_installed() -> None:
    """Refuse to begin without the service's libraries.

    Raises:
        InputError: one is missing.
    """
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise InputError(f"serve needs {missing[0]}: install hiermem-torch with the extra serve.")
