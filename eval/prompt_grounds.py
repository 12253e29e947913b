"""Settings of dumped prompts, kept beside them, so that results of other libraries stand beside ours."""

import json
from pathlib import Path
from typing import Any

from hiermem.errors import InputError
from hiermem.eval.comparison import ground_of
from hiermem.eval.result_log import replaced, writable

_BEGIN = b'{"task": '
"""How every such file begins."""
_ENDING = ".settings.json"


def ground_file(prompts: Path) -> Path:
    """The file beside a file of prompts."""
    return prompts.with_name(prompts.name + _ENDING)


def is_ground(file: Path) -> bool:
    """Whether a file stands beside prompts, and is no result."""
    return file.name.endswith(_ENDING) and file.with_name(file.name.removesuffix(_ENDING)).exists()


def write_ground(prompts: Path, task: str, settings: dict[str, Any]) -> None:
    """Keep the settings of a task that its prompts follow from.

    Raises:
        InputError: they cannot be written, or another file would be lost.
    """
    ground = ground_of({"config": settings})
    kept = {"task": task, "model": ground.pop("backbone"), **ground}
    replaced(writable(ground_file(prompts), "--dump", _BEGIN), json.dumps(kept, ensure_ascii=False) + "\n")


def read_ground(prompts: Path) -> dict[str, Any]:
    """The settings that `write_ground` kept, to be those of a result on the same prompts.

    Raises:
        InputError: there are none.
    """
    file = ground_file(prompts)
    try:
        ground = json.loads(file.read_text("utf-8"))
        if not isinstance(ground, dict) or not isinstance(ground["task"], str):
            raise TypeError("no settings")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{file} does not say what {prompts.name} was made from: write both with `--dump`."
        ) from error
    return ground
