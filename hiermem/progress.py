"""Progress bars that leave other processes alone.

tqdm's own lock is shared by a process and all its forks: one that is killed while it draws stops the others
for ever. Here a bar has a lock of its process, no thread beside it, and without a terminal there is no bar.
"""

import os
import sys
import threading
from contextlib import AbstractContextManager, suppress
from functools import cache
from typing import Any, ClassVar, Protocol
from weakref import WeakSet


class Bar(Protocol):
    """A progress bar, as tqdm's."""

    def update(self, n: float = 1) -> Any:
        """Go on by ``n`` units."""

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """Show values behind the bar."""


class _NoBar(AbstractContextManager["_NoBar"]):
    """Shows nothing."""

    def update(self, n: float = 1) -> None:
        """See `Bar`."""

    def set_postfix(self, *, refresh: bool = True, **values: Any) -> None:
        """See `Bar`."""

    def __exit__(self, *_: object) -> None:
        """Nothing was held."""


def progress_bar(name: str, total: int | None, unit: str, shown: bool) -> AbstractContextManager[Bar]:
    """A bar for work of more than two seconds, if the error stream is a terminal.

    Args:
        name: text before the bar.
        total: units in all, if known.
        unit: name of a unit.
        shown: False shows no bar.
    """
    if not shown or sys.stderr is None or not sys.stderr.isatty():
        return _NoBar()
    return _bar_class()(total=total, unit=unit, unit_scale=True, desc=name, delay=2)


def say(text: str) -> None:
    """Write a line to the error stream, above a bar that may stand there; where nobody listens, go on."""
    with suppress(OSError, ValueError):
        if sys.stderr is None:
            return
        if sys.stderr.isatty():
            _bar_class().write(text, file=sys.stderr)
        else:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


@cache
def _bar_class() -> Any:
    """tqdm's bar with a lock of this process alone and no thread beside it."""
    from tqdm import tqdm

    class OwnBar(tqdm):
        monitor_interval = 0
        _instances: ClassVar[WeakSet[Any]] = WeakSet()

    def renew() -> None:
        OwnBar.set_lock(threading.RLock())

    renew()
    os.register_at_fork(after_in_child=renew)
    return OwnBar
