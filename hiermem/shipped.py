"""Files with trained parts that ship for a backbone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from hiermem.bundled import BUNDLED_MODELS
from hiermem.errors import InputError, first_line

WEIGHTS = Path(__file__).parent / "weights"
"""A folder for each backbone by its name, and each saved model that ships."""


def shipped(backbone: str, file: str) -> Path | None:
    """The file of that name that ships for a backbone; None: none does."""
    path = WEIGHTS / backbone / file
    return path if backbone in BUNDLED_MODELS and path.is_file() else None


@contextmanager
def undamaged(path: Path, what: str) -> Iterator[None]:
    """Say of a file that ships, and cannot be read within, what to do.

    Args:
        what: it holds, as the sentence begins.

    Raises:
        InputError: so it is.
    """
    try:
        yield
    except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{what} at {path} is damaged ({first_line(error)}): install hiermem again."
        ) from error
