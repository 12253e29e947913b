"""Chat templates: the texts that they put before and after a message.

A template is a program that comes with a model. The bundled model's runs in this process; any other one runs
once in a process of its own, in limited time and memory.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hiermem import render
from hiermem.errors import InputError, first_line

SECONDS = 60.0
"""Time limit of a template; the process that renders it needs one or two to start."""

_BUNDLED = "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"  # SHA-256 of smollm2's template
_MESSAGE = re.compile(r"hiermem:message:(\d+);")  # stands for a message
_THOUGHT = ("<think>", "</think>")


def frame(tokenizer: Any) -> tuple[str, str]:
    """Text of the chat template before and after a user's message, up to where the answer begins; both are
    empty where there is no template.

    Raises:
        InputError: see `frames`.
    """
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    before, after = frames(tokenizer, ("user",))
    return before, after


def frames(tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """Texts of the chat template before, between and after messages of these roles, up to where the answer
    begins. Thinking is off where the template can switch it off.

    Raises:
        InputError: there is no template, it fails, takes too long, or does not write each message once.
    """
    try:
        values = {**tokenizer.special_tokens_map, "enable_thinking": False}
        text = _rendered(tokenizer.get_chat_template(), tuple(roles), json.dumps(values, default=str))
        places = _MESSAGE.split(text)
        if places[1::2] != [str(number) for number in range(len(roles))]:
            raise ValueError("it does not write each message once")
    except ValueError as error:
        raise InputError(
            f"The model's chat template cannot be used ({first_line(error)}): mend chat_template of its "
            f"tokenizer, or set it to None."
        ) from error
    return places[::2]


def without_thoughts(tokenizer: Any, answer: str, begun: bool = False) -> str:
    """An answer after the thoughts that it begins with, which some templates cannot switch off.

    Args:
        begun: whether this is the beginning of an answer, in which the thoughts may just be beginning.
    """
    opens, closes = _THOUGHT
    start = answer.lstrip()
    thinks = start.startswith(opens) or frame(tokenizer)[1].rstrip().endswith(opens)
    if thinks or (begun and opens.startswith(start)):
        return answer.partition(closes)[2]
    return answer


@lru_cache(maxsize=64)
def _rendered(template: str, roles: tuple[str, ...], values: str) -> str:
    """The text of a template around messages.

    Args:
        values: what the template may use beside the messages, as JSON.
    """
    messages = [{"role": role, "content": f"hiermem:message:{number};"} for number, role in enumerate(roles)]
    job: dict[str, Any] = {"template": template, "messages": messages, "values": json.loads(values)}
    if hashlib.sha256(template.encode()).hexdigest() == _BUNDLED:
        return render.render(**job)
    try:
        done = subprocess.run(
            [sys.executable, "-P", render.__file__],
            input=json.dumps(job),
            capture_output=True,
            encoding="utf-8",
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it runs for more than {SECONDS:.0f} seconds") from error
    except OSError as error:
        raise ValueError(f"no process to render it can be started: {error.strerror}") from error
    if done.returncode:
        raise ValueError(f"the process that renders it ended with status {done.returncode}")
    result = json.loads(done.stdout)
    if "error" in result:
        raise ValueError(result["error"])
    return str(result["text"])
