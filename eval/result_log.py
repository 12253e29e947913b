"""Results that survive a stop: one JSON object in the end, one line for each finished part until then."""

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hiermem.errors import InputError, first_line
from hiermem.retrieval.disk import check_room


class ResultLog:
    """The results of one run at ``path``; without a path they are kept in memory only.

    While the run goes on, finished parts stand in ``path`` with `.part` added, one line each. A run with the
    same settings takes them over.

    Args:
        settings: all that the results depend on, and ``task``, its name.

    Raises:
        InputError: the file there is of a run with other settings, or is no result log.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self._rows: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0  # of the parts that were taken over from an earlier run
        self._part: Path | None = None
        if path is not None:
            self._part = writable(path).with_name(path.name + ".part")
            if self._part.exists():
                self._take_over(self._part)

    def report(self, measure: Callable[["ResultLog"], dict[str, Any]], command: str) -> dict[str, Any]:
        """The result of an earlier, complete run with the same settings, or else of ``measure``.

        Args:
            measure: makes ``metrics``, ``rows``, …; task, settings, seconds (of all runs together), the
                command and versions of libraries are added.
            command: what a reader types to make this result.

        Raises:
            InputError: the result there is of a run with other settings.
        """
        report = self._finished()
        if report is None:
            start = time.perf_counter()
            report = {"task": self.settings["task"], **measure(self), "config": self.settings}
            report |= {"seconds": self._seconds + time.perf_counter() - start, "command": command}
            report["versions"] = {name: _version(name) for name in ("hiermem-torch", "torch", "transformers")}
            self._finish(report)
        return report

    def row(self, key: str, compute: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """The result of one part: from an earlier run, or ``compute(*arguments)``, which is kept."""
        if key not in self._rows:
            start = time.perf_counter()
            self._rows[key] = compute(*arguments)
            self._append({"key": key, "row": self._rows[key], "seconds": time.perf_counter() - start})
        return self._rows[key]

    def _is_ours(self, settings: Any) -> bool:
        """Whether settings in a file are those of this run, by whichever names of policies."""
        return settings == self.settings or _as_now(settings) == _as_now(self.settings)

    def _finished(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            report = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.path} is no result ({first_line(error)}): give another file to --out."
            ) from error
        if not isinstance(report, dict) or not self._is_ours(report.get("config")):
            raise InputError(f"{self.path} is of a run with other settings: give another file to --out.")
        return report

    def _finish(self, report: dict[str, Any]) -> None:
        if self.path is None or self._part is None:
            return
        replaced(self.path, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
        self._part.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        if self._part is None:
            return
        try:
            lines = [line] if self._part.exists() else [{"settings": self.settings}, line]
            with open(self._part, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self._part} cannot be written ({error.strerror}): check --out.") from error

    def _take_over(self, part: Path) -> None:
        header = json.dumps({"settings": self.settings}, ensure_ascii=False) + "\n"
        data = part.read_bytes()
        if header.encode().startswith(data):  # stopped before the first part was finished
            part.unlink()
            return
        try:
            lines = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
            settings, rows = lines[0]["settings"], {line["key"]: line["row"] for line in lines[1:]}
            seconds = sum(line["seconds"] for line in lines[1:])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{part} is no log of a run: delete it, or give another --out.") from error
        if not self._is_ours(settings):
            raise InputError(
                f"{part} is of a run with other settings: delete it, or give another file to --out."
            )
        self._rows, self._seconds = rows, seconds
        if not data.endswith(b"\n"):  # the last line was cut short by a kill
            part.write_bytes(data[: data.rindex(b"\n") + 1])


def _as_now(settings: Any) -> Any:
    """Settings of a run with policies by the names that they have now, and no more than results always had.

    Former results of trained models do not name the backbone, which follows from the parameters.
    """
    from hiermem.memory.policies import POLICIES  # which imports torch

    if not isinstance(settings, dict):
        return settings
    parts = {"working": _as_now(settings["working"])} if "working" in settings else {}
    policy = {"policy": POLICIES.renamed(settings["policy"])} if "policy" in settings else {}
    return {name: value for name, value in {**settings, **parts, **policy}.items() if name != "backbone"}


def data_hash(*texts: str) -> str:
    """A short hash by which the settings of a run tell its data from others."""
    digest = sha256()
    for text in texts:
        digest.update(f"{len(text)}/{text}".encode())
    return digest.hexdigest()[:16]


def writable(path: Path, option: str = "--out", begins: bytes = b"") -> Path:
    """The path of a file that is going to be written, once its folder is there.

    Args:
        option: by which it was given.
        begins: how every such file begins; what is there and begins otherwise is another file.

    Raises:
        InputError: nothing can be written there, or another file would be written over.
    """
    if not path.name or path.is_dir():
        raise InputError(f"{path} is a folder: give a file to {option}.")
    if path.exists() and not path.is_file():  # a device, say, which a file would take the place of
        raise InputError(f"{path} is no plain file: give another to {option}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, 1)
        beginning = _beginning(path, len(begins))
    except OSError as error:
        raise InputError(
            f"Nothing can be written into {path.parent} ({error.strerror or error}): check {option}."
        ) from error
    if beginning not in (b"", begins):
        raise InputError(f"{path} is no earlier result and would be lost: give another to {option}.")
    return path


def _beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where there is no file."""
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except FileNotFoundError:
        return b""


def check_apart(path: Path, option: str, *inputs: str | os.PathLike[str]) -> None:
    """Refuse to write to what is read.

    Raises:
        InputError: ``path`` is one of the inputs, which are names of files and folders or of anything else.
    """
    for name in inputs:
        if path.exists() and os.path.exists(name) and os.path.samefile(path, name):
            raise InputError(f"{path} is what is read, and would be written over: give another to {option}.")


def replaced(path: Path, text: str) -> None:
    """Write a whole file, or leave what was there.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, "utf-8", "replace")  # file names may hold what is not Unicode
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): give another file."
        ) from error


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
