"""The service as a process: it listens, answers, and ends in order."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from hiermem.errors import InputError
from hiermem.model import HierMemModel
from hiermem.server.app import create_app
from hiermem.server.settings import ServerSettings

_CONNECTIONS = 1000
_HEADER_BYTES = 32 << 10
_HEADER_SECONDS = 15.0


class _Protocol(H11Protocol):
    """HTTP/1.1 whose connections end where no request comes soon."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; see asyncio."""
        super().connection_made(transport)
        self.loop.call_later(_HEADER_SECONDS, self._check_begun)

    def _check_begun(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Server(uvicorn.Server):
    """A server that SIGINT, SIGTERM and SIGHUP end in order, with status 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while this lasts."""
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in numbers
            if signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    load: Callable[[], HierMemModel],
    path: Path,
    settings: ServerSettings,
    index: bool | None = None,
    on_listening: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve a library until a signal ends it.

    Args:
        on_listening: told the address once requests can come.

    Raises:
        InputError: the port cannot be had.
        HierMemError: the model or the library cannot be loaded.
    """
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    listening = _listen(settings)
    app = create_app(load, path, settings, index, failed)
    server = _Server(configured(app, settings))
    for name in ("uvicorn.error", "uvicorn.access", "asyncio"):  # what they say is in the service's own log
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    on_listening(f"http://{host}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])
    if failures:
        raise failures[0]


def configured(app: FastAPI, settings: ServerSettings) -> uvicorn.Config:
    """How an app is served."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(settings.end_seconds),
        h11_max_incomplete_event_size=_HEADER_BYTES,
    )


def _listen(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        raise InputError(
            f"The service cannot listen at {settings.host}:{settings.port} ({error.strerror or error}): give "
            f"another --port or --host."
        ) from error
    return listening
