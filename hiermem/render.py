"""Rendering of a chat template; as a script it does so for another process, which may stop it.

The script reads what `render` takes as JSON from standard input and writes the text as JSON.
"""

import json
import sys
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

_MEMORY, _CHARACTERS = 1 << 33, 1 << 20  # bytes of address space of the script; length of a text


def render(template: str, messages: list[dict[str, str]], values: dict[str, Any]) -> str:
    """The text up to where an answer begins.

    Args:
        template: the chat template, in Jinja.
        messages: the conversation.
        values: variables of the template beside the messages, such as special tokens.

    Raises:
        ValueError: the text is too long.
    """
    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=True, **values
    )
    if len(texts[0]) > _CHARACTERS:
        raise ValueError(f"it writes more than {_CHARACTERS} characters")
    return str(texts[0])


def main() -> None:
    """Render the job on standard input, in bounded memory where the system can bound it."""
    job = json.load(sys.stdin)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, OSError, ValueError):  # not on this system
        pass
    try:
        result = {"text": render(**job)}
    except Exception as error:  # whatever a stranger's template does
        result = {"error": str(error).strip() or type(error).__name__}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
