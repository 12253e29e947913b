"""A command that keeps what it has done ends in order: Ctrl-C, SIGTERM and SIGHUP ask it to stop, once.

Only the main thread gets signals, and only within `stoppable` are they handled so. Signals that were ignored
before, as `nohup` and background jobs want it, stay ignored.
"""

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar, cast

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Stopped(BaseException):
    """A signal asked this process to stop.

    Attributes:
        status: the exit status that says so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number


class Stop:
    """A request to stop. The first signal raises `Stopped`; later ones wait for the end."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._held = self._done = False

    @property
    def asked(self) -> bool:
        """Whether a signal has asked for it."""
        return self._number is not None

    def ask(self, number: int, _frame: object) -> None:
        """Handle a signal."""
        if self._number is None:
            self._number = number
            if not self._held:
                raise Stopped(number)

    def check(self) -> None:
        """Stop here if a stop was asked for: the first signal may have come while things were held, or where
        Python drops exceptions.

        Raises:
            Stopped: it was.
        """
        if self._number is not None and not self._done:
            raise Stopped(self._number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let signals wait until this is done.

        Raises:
            Stopped: one came meanwhile.
        """
        self.hold()
        try:
            yield
        finally:
            self._held = self._done
        self.check()

    def done(self) -> None:
        """Raise nothing any more: what was to be stopped is done."""
        self._held = self._done = True

    def hold(self) -> None:
        """Let signals wait for `check` from now on."""
        self._held = True


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Let signals ask for a stop while this lasts; afterwards they are handled as before, or, where one has
    asked, end the process at once: what there was to keep is kept."""
    stop, before = Stop(), {number: signal.getsignal(number) for number in _numbers()}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in handled:
            signal.signal(number, stop.ask)
        yield stop
    finally:
        stop.hold()  # nothing is raised while the handlers go back
        for number in handled:
            signal.signal(number, signal.SIG_DFL if stop.asked else before[number])
    stop.check()


def _numbers() -> list[int]:
    """The signals that this thread can handle."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def interrupt_once() -> None:
    """Let the first Ctrl-C raise KeyboardInterrupt, as it does, and the next one end the process at once."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler and _numbers():
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.default_int_handler(number, frame)


def end_by_signals() -> None:
    """Let signals end this process silently and at once, when all is done or saved."""
    for number in _numbers():
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def stopping(command: _Command) -> _Command:
    """Let signals end a command as Ctrl-C does; its checkpoints are whole at any moment.

    As one process of many, which would hear nothing while it waits for the others, it ends at once.
    """

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return command(*arguments, **options)
        with stoppable():
            return command(*arguments, **options)

    return cast(_Command, run)
