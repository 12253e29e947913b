"""Documents read by several processes, on one machine or many, by Ray (extra `ray`).

Each worker has a model of its own. The folder of the library is on a file system that all machines see: a
worker makes the files of a document in `incoming`, and the one process that writes the library puts them into
place. A worker that dies is replaced, and another one goes on where it last saved.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermem.documents import Document
from hiermem.errors import HierMemError, InputError, first_line
from hiermem.library.addition import Addition
from hiermem.library.catalogue import Catalogue
from hiermem.library.entries import Added
from hiermem.library.files import checked_name, opened
from hiermem.library.settings import LibrarySettings
from hiermem.library.shelves import Shelves, Size, origin
from hiermem.model import HierMemModel
from hiermem.progress import say

ATTEMPTS = 3
"""Times that a document is given to a worker, where workers die."""


@dataclass(frozen=True)
class Workers:
    """Processes that read documents.

    Attributes:
        count: how many.
        load: makes the model of each; it must be importable on all machines.
        address: of a Ray cluster, such as ``ray://host:10001``; None: processes of this machine.
        cpus: cores that each needs.
        gpus: GPUs that each needs.
    """

    count: int
    load: Callable[[], HierMemModel]
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"There must be at least one worker, not {self.count}.")

    def add(self, path: Path, files: Sequence[tuple[str, Path]]) -> Iterator[Added]:
        """Add files to a library that is there, in their order, each once.

        Args:
            files: by the names of their documents.

        Raises:
            InputError: a file cannot be read, Ray is not installed, or a document failed in several workers.
            MemoryLockedError: another process is adding or removing.
        """
        path = path.absolute()
        catalogue = Catalogue(path)
        try:
            shelves, settings = Shelves(path, catalogue), LibrarySettings.read(catalogue.settings, path)
            with shelves.writer(), self._running() as ray:
                pool = _Pool(ray, self, settings)
                try:
                    yield from _added(shelves, files, pool)
                finally:
                    pool.close()
        finally:
            catalogue.close()

    @contextmanager
    def _running(self) -> Iterator[Any]:
        """Ray, begun here or joined; what was begun here is ended."""
        try:
            import ray
        except ImportError as error:
            raise InputError("Workers need the extra ray: pip install 'hiermem-torch[ray]'.") from error
        if ray.is_initialized():
            yield ray
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"address": self.address, "log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            paths = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
            options |= {"num_cpus": self.count * self.cpus, "include_dashboard": False, "runtime_env": paths}
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises plain ones, too
            where = self.address or "on this machine"
            raise InputError(
                f"Ray cannot be used {where} ({first_line(error)}): check the address, or leave workers out."
            ) from error
        try:
            yield ray
        finally:
            ray.shutdown()


@dataclass(frozen=True)
class _Begun:
    """A document that workers read."""

    document: Document
    staging: Path
    source: str


def _added(shelves: Shelves, files: Iterable[tuple[str, Path]], pool: "_Pool") -> Iterator[Added]:
    """Outcomes in the order of the files; twice as many documents are open as there are workers."""
    begun: list[_Begun | Added] = []
    failure: HierMemError | None = None
    for name, path in files:
        try:
            begun.append(_begun(shelves, name, path, pool))
        except HierMemError as error:  # what came before it is added first
            failure = error
            break
        while begun and (isinstance(begun[0], Added) or not pool.has_room):
            yield _outcome(shelves, begun.pop(0), pool)
    while begun:
        yield _outcome(shelves, begun.pop(0), pool)
    if failure is not None:
        raise failure


def _begun(shelves: Shelves, name: str, path: Path, pool: "_Pool") -> _Begun | Added:
    if (same := shelves.unchanged(name, path)) is not None:
        return same
    document = opened(checked_name(name), path)
    begun = _Begun(document, shelves.begin(document), origin(path))
    pool.put(document, begun.staging)
    return begun


def _outcome(shelves: Shelves, begun: _Begun | Added, pool: "_Pool") -> Added:
    """The outcome of a document, once it is there."""
    if isinstance(begun, Added):
        return begun
    size = pool.result(begun.document, begun.staging)
    return shelves.put(begun.document, size, begun.staging, begun.source)


class _Worker:
    """A process that reads documents with a model of its own."""

    def __init__(self, load: Callable[[], HierMemModel], settings: LibrarySettings, where: str) -> None:
        model = load()
        settings.check(model, where)
        self._addition = Addition(model, settings, progress=False, on_reading=None)

    def ready(self) -> None:
        """Answer once the model is loaded."""

    def read(self, document: Document, staging: Path) -> Size | str:
        """The size of a document whose files are made; a sentence on why they cannot be."""
        try:
            return self._addition(document, staging)
        except HierMemError as error:
            return str(error)


class _Pool:
    """The workers, and what each is reading."""

    def __init__(self, ray: Any, workers: Workers, settings: LibrarySettings) -> None:
        self._ray, self._workers, self._settings = ray, workers, settings
        self._all = [self._new() for _ in range(workers.count)]
        try:
            ray.get([worker.ready.remote() for worker in self._all])
        except ray.exceptions.RayError as error:
            why = str(error).strip().splitlines()[-1]
            raise InputError(
                f"Workers cannot start ({why}): check that each has the memory for a model, and the same "
                f"packages."
            ) from error
        self._running: dict[Path, tuple[Any, Any]] = {}  # worker and result, by folder

    def _new(self) -> Any:
        options = {"num_cpus": self._workers.cpus, "num_gpus": self._workers.gpus}
        actor = self._ray.remote(**options)(_Worker)
        return actor.remote(self._workers.load, self._settings, "the library")

    @property
    def has_room(self) -> bool:
        """Whether a worker has nothing to read, or will not have soon."""
        return len(self._running) < 2 * self._workers.count

    def put(self, document: Document, staging: Path) -> None:
        """Give a document to the worker that has least to read."""
        worker = min(self._all, key=lambda each: sum(own is each for own, _ in self._running.values()))
        self._running[staging] = worker, worker.read.remote(document, staging)

    def result(self, document: Document, staging: Path) -> Size:
        """The size of a document, once its files are made; another worker goes on where one has died.

        Raises:
            InputError: it cannot be read, or workers died again and again.
        """
        for _ in range(ATTEMPTS):
            worker, result = self._running.pop(staging)
            try:
                size = self._ray.get(result)
            except self._ray.exceptions.RayActorError as error:
                say(f"hiermem: a worker has died ({type(error).__name__}); another one goes on.")
                self._replace(worker)
                self.put(document, staging)
            except self._ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()[-1]
                raise InputError(
                    f"A worker cannot read the document {document.name!r} ({why}): add it without workers."
                ) from error
            else:
                if isinstance(size, str):
                    raise InputError(size)
                assert isinstance(size, Size)
                return size
        del self._running[staging]
        raise InputError(
            f"Workers died {ATTEMPTS} times while they read {document.name!r}: give fewer --workers, or more "
            f"memory."
        )

    def _replace(self, worker: Any) -> None:
        """Put a new worker in the place of one that has died, unless that was done."""
        self._all = [self._new() if each is worker else each for each in self._all]

    def close(self) -> None:
        """End the workers."""
        for worker in self._all:
            self._ray.kill(worker)
