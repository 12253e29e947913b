"""Results that survive a stop: one JSON object in the end, one line for each finished part until then."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hiermem.errors import InputError


class Journal:
    """The results of one run at ``path``; without a path they are kept in memory only.

    While the run goes on, finished parts stand in ``path`` with `.part` added, one line each. A run with the
    same settings takes them over.

    Args:
        settings: all that the results depend on, and ``task``, its name.

    Raises:
        InputError: the file there is of a run with other settings, or is no journal.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self._rows: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0  # of the parts that were taken over from an earlier run
        self._part = path.with_name(path.name + ".part") if path is not None else None
        if self._part is not None and self._part.exists():
            self._take_over(self._part)

    def report(self, measure: Callable[["Journal"], dict[str, Any]], command: str) -> dict[str, Any]:
        """The result of an earlier, complete run with the same settings, or else of ``measure``.

        Args:
            measure: makes ``metrics``, ``rows``, …; task, settings, seconds (of all runs together) and the
                command are added.
            command: what a reader types to make this result.

        Raises:
            InputError: the result there is of a run with other settings.
        """
        report = self._finished()
        if report is None:
            start = time.perf_counter()
            report = {"task": self.settings["task"], **measure(self), "config": self.settings}
            report |= {"seconds": self._seconds + time.perf_counter() - start, "command": command}
            self._finish(report)
        return report

    def row(self, key: str, compute: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
        """The result of one part: from an earlier run, or ``compute(*arguments)``, which is kept."""
        if key not in self._rows:
            start = time.perf_counter()
            self._rows[key] = compute(*arguments)
            self._append({"key": key, "row": self._rows[key], "seconds": time.perf_counter() - start})
        return self._rows[key]

    def _finished(self) -> dict[str, Any] | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            report = json.loads(self.path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"{self.path} is no result ({error}): give another file to --out.") from error
        if not isinstance(report, dict) or report.get("config") != self.settings:
            raise InputError(f"{self.path} is of a run with other settings: give another file to --out.")
        return report

    def _finish(self, report: dict[str, Any]) -> None:
        if self.path is None or self._part is None:
            return
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", "utf-8")
        os.replace(temporary, self.path)
        self._part.unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        if self._part is None:
            return
        try:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            lines = [line] if self._part.exists() else [{"settings": self.settings}, line]
            with open(self._part, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self._part} cannot be written ({error.strerror}): check --out.") from error

    def _take_over(self, part: Path) -> None:
        lines = part.read_text("utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):  # cut short by a kill
            lines.pop()
            part.write_text("".join(lines), "utf-8")
        if not lines:
            part.unlink()
            return
        try:
            known = [json.loads(line) for line in lines]
            settings = known[0]["settings"]
            self._rows = {line["key"]: line["row"] for line in known[1:]}
            self._seconds = sum(line["seconds"] for line in known[1:])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{part} is no journal of a run: delete it, or give another --out.") from error
        if settings != self.settings:
            raise InputError(
                f"{part} is of a run with other settings: delete it, or give another file to --out."
            )
