"""The log of a long run: lines of JSON, and TensorBoard's files where it is installed."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Note = Callable[[int, Mapping[str, Any]], None]
"""Takes a step's number and its values; numbers among them become curves."""


@contextmanager
def log(folder: Path, writes: bool = True) -> Iterator[Note]:
    """A function that notes a step in ``folder / "history.jsonl"`` and in TensorBoard's files.

    Args:
        folder: folder of the run.
        writes: False gives one that does nothing, for all processes but the first.
    """
    if not writes:
        yield lambda step, values: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    board = _board(folder / "tensorboard")

    def note(step: int, values: Mapping[str, Any]) -> None:
        file.write(json.dumps({**values}) + "\n")
        file.flush()
        for name, value in values.items():
            if board is not None and isinstance(value, int | float) and not isinstance(value, bool):
                board.add_scalar(name, value, step)

    try:
        with (folder / "history.jsonl").open("a", encoding="utf-8") as file:
            yield note
    finally:
        if board is not None:
            board.close()


def _board(folder: Path) -> Any:
    """TensorBoard's writer; None where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
