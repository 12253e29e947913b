"""Prompts: passages and a question in the tokenizer's chat template, as characters and as tokens.

Only the template places control tokens. What a document or a question holds is text, their names included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hiermem.templates import frame
from hiermem.text import encode

_HEADING = "Passages:\n\n"


@dataclass(frozen=True)
class PromptText:
    """A prompt, or a part of one, as characters.

    Attributes:
        content: passages and question.
        before: what the chat template wrote before the content.
        after: what it wrote behind.
        lead: beginning of the answer.
    """

    content: str
    before: str = ""
    after: str = ""
    lead: str = ""

    def __str__(self) -> str:
        return self.before + self.content + self.after + self.lead

    def ids(self, tokenizer: Any, *, begins: bool = False) -> list[int]:
        """Its token ids, of which only those of the template may be control tokens.

        Args:
            begins: whether nothing is read before it.
        """
        start = len(self.before)
        end = start + len(self.content)
        template = (range(start), range(end, end + len(self.after)))
        return encode(tokenizer, str(self), begins=begins, template=template)


def prompt_text(tokenizer: Any, passages: Sequence[str], question: str, instruction: str) -> PromptText:
    """Passages, then the question; in the tokenizer's chat template if it has one."""
    if getattr(tokenizer, "chat_template", None):
        last = f"Question: {question}\n{instruction}".strip() if passages else question
        content = "\n\n".join([*passages, last])
        return PromptText(_HEADING + content if passages else content, *frame(tokenizer))
    return PromptText("\n\n".join([*passages, f"Question: {question}\nAnswer:"]))


def around_passages(
    tokenizer: Any, passages: Sequence[str], question: str, instruction: str
) -> tuple[PromptText, PromptText]:
    """Parts of a prompt before passages that are there already, and behind them, further passages first."""
    whole = prompt_text(tokenizer, ["", *passages], question, instruction)
    heading = _HEADING if whole.content.startswith(_HEADING) else ""
    before = replace(whole, content=heading, after="")
    return before, replace(whole, before="", content=whole.content[len(heading) :])


def split_prompt(tokenizer: Any, text: str, question: str, instruction: str) -> tuple[PromptText, PromptText]:
    """A prompt about one text, up to its end and from there: the first may be read for any question."""
    whole = prompt_text(tokenizer, [text], question, instruction)
    if not text:
        return PromptText(""), whole
    start = len(_HEADING) if whole.content.startswith(_HEADING) else 0
    end = whole.content.index(text, start) + len(text)
    first = replace(whole, content=whole.content[:end], after="")
    return first, replace(whole, before="", content=whole.content[end:])
