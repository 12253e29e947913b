"""Texts that end an answer, which a client may give."""

from collections.abc import Sequence


class StopText:
    """An answer up to the first of its stop texts, piece by piece; what may begin one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._text, self._shown = stops, "", 0
        self._hold = max(map(len, stops), default=1) - 1
        self.stopped = False

    def take(self, piece: str) -> str:
        """Text that can be shown with one piece more."""
        if self.stopped:
            return ""
        self._text += piece
        found = [at for stop in self._stops if (at := self._text.find(stop)) >= 0]
        if found:
            self.stopped, self._text = True, self._text[: min(found)]
            return self._show(len(self._text))
        return self._show(len(self._text) - self._hold)

    def end(self) -> str:
        """Text that was held back."""
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        end = max(end, self._shown)
        piece = self._text[self._shown : end]
        self._shown = end
        return piece

    @property
    def text(self) -> str:
        """The whole text."""
        return self._text
