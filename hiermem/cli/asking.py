"""`hiermem ask`: a memory answers questions, one, several or a conversation."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hiermem.cli import options as opt
from hiermem.cli.answers import as_json, converse, in_words, is_conversation, is_terminal, show
from hiermem.cli.named_model import named_model
from hiermem.documents import file_text
from hiermem.errors import InputError, MemoryMissingError

if TYPE_CHECKING:
    from hiermem.answer import Answer
    from hiermem.answer_stream import AnswerStream
    from hiermem.memory.working_config import WorkingMemoryConfig

ReadModel = Annotated[
    str | None,
    typer.Option(help="Model that read the memory; default: the one that it names, if that is bundled."),
]
AskSettings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PART.NAME=VALUE",
        help="A setting of answers, such as asking.passages=kv, or of search keys that name files, as the "
        "memory was read with, such as longterm.keys.dense.encoder=FOLDER; repeatable.",
    ),
]
_SETTABLE = ("longterm.keys", "asking")
ReadEvictor = Annotated[
    str | None, typer.Option(help="As the memory was read with; default: the model's own.")
]
ReadDtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: that of the memory.")
]
ReadQuantize = Annotated[
    str | None, typer.Option(help="float16, int8 or int4, as the memory was read; default: as that.")
]


def ask(
    memory_dir: Annotated[Path, typer.Argument(help="Folder of a saved memory, or of a library.")],
    question: Annotated[
        list[str] | None,
        typer.Argument(help="What you want to know; several are answered together; none: a conversation."),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file with more questions, one a line.")
    ] = None,
    document: Annotated[
        list[str] | None,
        typer.Option(help="Of a library: only this document, as hiermem list names it; repeatable."),
    ] = None,
    before: Annotated[
        int | None, typer.Option(metavar="PAGE", help="Of a library: only pages before this one.")
    ] = None,
    model: ReadModel = None,
    preset: opt.Preset = None,
    policy: opt.Policy = None,
    policy_set: opt.PolicySet = None,
    settings: AskSettings = None,
    evictor: ReadEvictor = None,
    top_k: opt.TopK = None,
    rerank: opt.Rerank = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of the answer in tokens.")] = 64,
    always_answer: Annotated[
        bool, typer.Option("--always-answer", help="Answer however unlikely the document holds an answer.")
    ] = False,
    dtype: ReadDtype = None,
    quantize: ReadQuantize = None,
    device: opt.Device = None,
    json: opt.Json = False,
) -> None:
    """Answer questions from a saved memory or a library, with sources.

    A memory that was read with a --preset, --policy, --policy-set or --evictor is asked with the same ones.
    Without a question, a conversation begins on a terminal: earlier turns count in what a question means.

    Examples:

        hiermem ask book.hmem "Who is the captain?"

        hiermem ask book.hmem "Who is the captain?" "Where does he sail?" --json

        hiermem ask ref.hmem "What does the with statement do?" --top-k 2 --json

        hiermem ask book.hmem "Who is the captain?" --top-k 1 --rerank 5

        hiermem ask book.hmem "Who is the captain?" --set asking.passages=kv

        hiermem ask papers "Who is the captain?" --document harbour.pdf --before 12
    """
    from hiermem.cli.assignments import check_kept, sets, with_used_settings
    from hiermem.cli.library_asking import (
        LibraryQuestions,
        open_library,
        refuse_for_library,
        refuse_for_memory,
    )
    from hiermem.library.catalogue import is_library
    from hiermem.memory.state import MemoryState
    from hiermem.quantization import quantization_config

    asked = _asked(question or [], questions, json)
    if max_new_tokens < 1 or (top_k is not None and top_k < 0):
        raise InputError("--max-new-tokens must be at least 1 and --top-k not negative.")
    if is_library(memory_dir):
        chosen_for_memories = {"policy": policy, "policy-set": policy_set, "set": settings}
        refuse_for_library(memory_dir, preset=preset, evictor=evictor, **chosen_for_memories)
        library = open_library(
            memory_dir, model, dtype, quantize, device, rerank=rerank, always_answer=always_answer
        )
        about = LibraryQuestions(library, document or [], before, top_k, max_new_tokens)
        output = _Output(library.top_k if top_k is None else top_k, json, questions is None)
        output.put(asked, about.answers, about.stream, about.conversation)
        return
    refuse_for_memory(document or [], before)
    if not memory_dir.is_dir():  # before the model is loaded
        raise MemoryMissingError(f"There is no memory at {memory_dir}: check the path, or read a text first.")
    opt.check_numbers(dtype, device)
    name, saved_dtype = MemoryState.read_with(memory_dir)
    chosen = model or named_model(memory_dir, name)
    config = opt.configuration(chosen, preset, policy, evictor=evictor, policy_set=policy_set)
    config = with_used_settings(config, settings or [], _SETTABLE)
    if quantize is None and (quantize := MemoryState.quantized_with(memory_dir)) is not None:
        try:
            quantization_config(quantize, opt.usable_device(device))
        except InputError as error:
            raise InputError(
                f"The memory at {memory_dir} was read with {quantize} weights. {error}"
            ) from error
    reader = opt.load_model(chosen, config, dtype or saved_dtype or None, device, quantize)
    reader.config.asking = opt.reranking(reader.config, rerank).asking
    if always_answer:
        reader.config.asking = replace(reader.config.asking, least_confidence=0.0)
    check_kept(reader.config, settings or [])
    memory = MemoryState.load(memory_dir, reader)
    if (
        sets(settings or [], "longterm.keys")
        and memory.longterm.config.keys != reader.longterm_config(memory.indexed).keys
    ):
        raise InputError(f"The memory at {memory_dir} has other search keys: leave longterm.keys out.")
    if preset or policy or policy_set:
        _check_policy(memory_dir, memory.working_config, reader.config.working)

    def conversation() -> "Callable[[str], AnswerStream]":
        chat = reader.chat(memory)
        return lambda typed: chat.ask(typed, top_k, max_new_tokens, stream=True)

    used = reader.config.longterm.top_k if top_k is None else top_k
    _Output(used, json, questions is None).put(
        asked,
        lambda texts: reader.ask(memory, texts, top_k, max_new_tokens),
        lambda text: reader.ask(memory, text, top_k, max_new_tokens, stream=True),
        conversation,
    )


@dataclass(frozen=True)
class _Output:
    """The way in which answers are shown.

    Attributes:
        top_k: segments that were to be recalled.
        json: whether they are printed as JSON.
        single: whether one question is no list of one.
    """

    top_k: int
    json: bool
    single: bool

    def put(
        self,
        questions: list[str],
        answers: "Callable[[list[str]], list[Answer]]",
        stream: "Callable[[str], AnswerStream]",
        conversation: "Callable[[], Callable[[str], AnswerStream]]",
    ) -> None:
        """Put questions and show the answers; without any, converse."""
        if not questions:
            converse(conversation())
        elif len(questions) == 1 and is_terminal() and not self.json:
            show(stream(questions[0]))
        else:
            start = time.perf_counter()
            found = answers(questions)
            self._print(questions, found, time.perf_counter() - start)

    def _print(self, questions: list[str], answers: "list[Answer]", seconds: float) -> None:
        rows = [as_json(answer) | {"seconds": seconds, "top_k": self.top_k} for answer in answers]
        words = [in_words(answer) for answer in answers]
        if self.single and len(questions) == 1:
            opt.emit(rows[0], self.json, words[0])
            return
        rows = [{"question": question} | row for question, row in zip(questions, rows, strict=True)]
        blocks = (f"{question}\n{text}" for question, text in zip(questions, words, strict=True))
        opt.emit(rows, self.json, "\n\n".join(blocks))


def _asked(given: list[str], file: Path | None, json: bool) -> list[str]:
    """The questions of the command line, then those of a file; none: a conversation.

    Raises:
        InputError: one is empty, or there is none where nobody types and reads.
    """
    if any(not question.strip() for question in given):
        raise InputError("The question is empty: ask something.")
    if file is not None:
        text = file_text(file, "a text file with a question on each line", "file of questions")
        return [*given, *filter(str.strip, text.splitlines())]
    if not given and (json or not is_conversation()):
        raise InputError(
            "There is no question: give one, or begin a conversation on a terminal without --json."
        )
    return given


def _check_policy(memory_dir: Path, read_with: "WorkingMemoryConfig", chosen: "WorkingMemoryConfig") -> None:
    """Refuse a policy on the command line that is not the memory's own, which it goes on with.

    Raises:
        InputError: so it is.
    """
    if read_with.policy != chosen.policy:
        raise InputError(
            f"The memory at {memory_dir} was read with the policy {read_with.policy}, not {chosen.policy}: "
            f"leave --preset and --policy as they were when it was read."
        )
    if read_with.policy_settings != chosen.policy_settings:
        raise InputError(
            f"The memory at {memory_dir} was read with other settings of the policy {read_with.policy}: "
            f"leave --policy-set as it was when it was read."
        )
