"""A service of the tiny model; as a program, several in turn: python serving.py LIBRARY COUNT."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from readers import reader

from hiermem.model import HierMemModel
from hiermem.server.app import create_app
from hiermem.server.running import configured, serve
from hiermem.server.settings import ServerSettings


class Client(httpx.Client):
    """A client of a service, with what tests do again and again."""

    def wait(self, seconds: float = 60.0) -> "Client":
        """Wait until questions are answered."""
        return self.until(lambda: self.get("/health").status_code == 200, seconds)

    def until(self, holds: Callable[[], bool], seconds: float = 60.0) -> "Client":
        """Wait until something holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.02)
        return self

    def upload(self, name: str, data: str | bytes) -> dict[str, Any]:
        """Upload a file."""
        answer = self.post("/v1/files", files={"file": (name, data)}, data={"purpose": "user_data"})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def state(self, identity: str) -> str:
        """How far a file has come: uploaded, processed or error."""
        return str(self.get(f"/v1/files/{identity}").json()["status"])

    def read(self, name: str, data: str | bytes) -> str:
        """Upload a file and wait until it was read; its id."""
        identity = str(self.upload(name, data)["id"])
        self.until(lambda: self.state(identity) != "uploaded")
        return identity

    def ask(self, question: str, **others: Any) -> dict[str, Any]:
        """The chat completion for a question."""
        body = {"model": "hiermem", "messages": [{"role": "user", "content": question}]} | others
        answer = self.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def value(self, measurement: str) -> float:
        """A measurement; 0 where it was never taken."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(measurement))


@contextmanager
def serving(
    path: Path,
    load: Callable[[], HierMemModel] = reader,
    key: str | None = None,
    index: bool | None = None,
    **settings: Any,
) -> Iterator[Client]:
    """A client of a service that listens at a free port of this machine, in a thread."""
    chosen = ServerSettings(**{"port": 0, "requests_per_minute": 0} | settings)
    server = uvicorn.Server(configured(create_app(load, path, chosen, index), chosen))
    listening = _socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    try:
        with Client(base_url=address, headers=headers, timeout=60) as client:
            client.until(lambda: server.started)
            yield client
    finally:
        server.should_exit = True
        thread.join()


def _socket() -> socket.socket:
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    return listening


def main(path: str, count: str) -> None:
    """Serve in one process after the other, each until it ends; tell its number, its address and its end."""
    torch.set_num_threads(1)
    for _ in range(int(count)):
        if (process := os.fork()) == 0:
            serve(reader, Path(path), ServerSettings(port=0), False, tell)
            os._exit(0)
        tell(process)
        _, status = os.waitpid(process, 0)
        tell(os.waitstatus_to_exitcode(status))


def tell(what: object) -> None:
    """Write a line to whoever started this program."""
    print(what, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
