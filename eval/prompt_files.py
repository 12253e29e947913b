"""Prompts in a JSONL file, so that other libraries can be asked the very same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiermem.errors import InputError
from hiermem.eval.result_log import writable

if TYPE_CHECKING:
    from hiermem.model import HierMemModel

_BEGIN = b'{"context": '
"""How every file of prompts begins."""


def check_prompt_file(file: Path | None) -> None:
    """Refuse a file, given to --dump, that cannot be written, or is none of prompts and would be lost.

    Raises:
        InputError: it is.
    """
    if file is not None:
        writable(file, "--dump", _BEGIN)


def prompt_parts(model: HierMemModel, text: str, question: str, lead: str) -> dict[str, Any]:
    """A prompt in two parts: ``context`` (what may be compressed) and ``question`` (what follows).

    Args:
        lead: how the answer begins, which ends the second.
    """
    from hiermem.prompts import split_prompt

    context, rest = split_prompt(model.tokenizer, text, question, model.config.asking.instruction)
    return {"context": str(context), "question": f"{rest}{lead}"}


def write_prompts(file: Path, prompts: Iterable[dict[str, Any]]) -> int:
    """Write prompts, each with what its answer is scored by; returns how many.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in prompts]
    try:
        file.write_text("".join(lines), "utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}): check --dump.") from error
    return len(lines)
