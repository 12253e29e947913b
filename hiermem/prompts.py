"""Prompts: passages and a question in the tokenizer's chat template, as characters and as tokens.

Only the template places control tokens. What a document or a question holds is text, their names included.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hiermem.memory.working import WorkingMemory
from hiermem.templates import frame
from hiermem.text import encode, encode_template, from_beginning

_HEADING = "Passages:\n\n"


@dataclass(frozen=True)
class PromptText:
    """A prompt, or a part of one, as characters.

    Attributes:
        before, after: what the chat template wrote around the content.
        content: passages and question.
        lead: how the answer begins.
    """

    content: str
    before: str = ""
    after: str = ""
    lead: str = ""

    def __str__(self) -> str:
        return self.before + self.content + self.after + self.lead

    def ids(self, tokenizer: Any) -> list[int]:
        """Its tokens, of which only those of the template may be control tokens."""
        begins = len(self.before)
        ends = begins + len(self.content)
        ours = (range(begins), range(ends, ends + len(self.after)))
        return encode_template(tokenizer, str(self), ours)


def prompt_text(tokenizer: Any, passages: Sequence[str], question: str, instruction: str) -> PromptText:
    """Passages, then the question; in the tokenizer's chat template if it has one."""
    if getattr(tokenizer, "chat_template", None):
        asked = [f"Question: {question}\n{instruction}".strip()] if passages else [question]
        content = "\n\n".join([*passages, *asked])
        return PromptText(_HEADING + content if passages else content, *frame(tokenizer))
    return PromptText("\n\n".join([*passages, f"Question: {question}\nAnswer:"]))


def split_prompt(tokenizer: Any, text: str, question: str, instruction: str) -> tuple[PromptText, PromptText]:
    """A prompt about one text, up to its end and from there: the first may be read for any question."""
    whole = prompt_text(tokenizer, [text], question, instruction)
    if not text:
        return PromptText(""), whole
    begins = len(_HEADING) if whole.content.startswith(_HEADING) else 0
    end = whole.content.index(text, begins) + len(text)
    first = replace(whole, content=whole.content[:end], after="")
    return first, replace(whole, before="", content=whole.content[end:])


def prompt_ids(tokenizer: Any, prompt: PromptText | str, working: WorkingMemory | None = None) -> Tensor:
    """Ids ``[1, n]`` of a prompt; where nothing was read before it, it begins as every text does."""
    ids = encode(tokenizer, prompt) if isinstance(prompt, str) else prompt.ids(tokenizer)
    follows = working is not None and any(working.num_tokens)
    return torch.tensor([ids if follows else from_beginning(tokenizer, ids)])
