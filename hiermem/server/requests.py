"""Requests as OpenAI's clients send them, checked field by field.

An answer is what the documents say, decoded greedily. So `temperature`, `top_p` and `seed` are checked and
change nothing, and messages of the system or the developer are checked and never reach the model: whoever
asks cannot give it other instructions than hiermem's own, and no document can, either. Fields that would
change what comes back are refused, unless they have the value that means nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hiermem.answer import Answer
from hiermem.chat import Turn
from hiermem.server.failures import ApiError, wrong

MODEL = "hiermem"
"""The name of all documents together; one document is called by it, a slash and its own name."""

_TURNS = 8
_PARTS = ("text", "input_text", "output_text")

Parsed = TypeVar("Parsed", bound="Fields")


class Fields(BaseModel):
    """Fields of a request, of which no other may be there.

    Attributes:
        neutral: further fields, with the values that mean nothing here.
        free: further fields that change nothing, whatever their values.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {}
    free: ClassVar[Sequence[str]] = ()

    @classmethod
    def parse(cls: type[Parsed], body: Mapping[str, Any]) -> Parsed:
        """The fields of a body.

        Raises:
            ApiError: one cannot be used; it is named.
        """
        kept = {}
        for name, value in body.items():
            if name in cls.free:
                continue
            if name not in cls.neutral:
                kept[name] = value
            elif not any(type(value) is type(same) and value == same for same in cls.neutral[name]):
                raise wrong(
                    f"The field {name!r} can only have its default here: leave it out.",
                    name,
                    "unsupported_parameter",
                )
        try:
            return cls.model_validate(kept)
        except ValidationError as error:
            raise _first(error) from error


class Scope(Fields):
    """The part of the library that a question is about: the one extension of OpenAI's interface.

    Attributes:
        documents: names of those; empty: all.
        before: only pages before that one.
    """

    documents: list[str] = Field(default=[], max_length=1000)
    before: int | None = Field(default=None, ge=1, le=1 << 31)


class Message(Fields):
    """A message of a conversation; its content is one text, whatever parts it came in."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str = ""
    name: str | None = None
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_echo(cls, value: Any) -> Any:
        """Leave out what clients send back of an answer, and what is null."""
        if not isinstance(value, dict):
            return value
        echo = ("annotations", "refusal", "phase") if value.get("role") == "assistant" else ()
        return {name: inner for name, inner in value.items() if inner is not None and name not in echo}

    @field_validator("content", mode="before")
    @classmethod
    def _joined(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = []
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if kind in _PARTS else None
            if not isinstance(text, str):
                raise PydanticCustomError("parts", "only text parts can be read here")
            texts.append(text)
        return "\n".join(texts)


class StreamOptions(Fields):
    """How an answer is streamed."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Common(Fields):
    free: ClassVar[Sequence[str]] = (
        "user",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    )

    model: str = Field(max_length=600)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    metadata: dict[str, str] = Field(default={}, max_length=16)
    hiermem: Scope = Scope()


class ChatRequest(_Common):
    """A request for a chat completion."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {
        "n": (1,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "frequency_penalty": (0, 0.0),
        "presence_penalty": (0, 0.0),
        "logit_bias": ({},),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    messages: list[Message] = Field(min_length=1, max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: list[str] = Field(default=[], max_length=4)

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if isinstance(stops, list) and any(isinstance(s, str) and not 0 < len(s) <= 200 for s in stops):
            raise PydanticCustomError("stop", "a stop text has 1 to 200 characters")
        return stops


class ResponsesRequest(_Common):
    """A request for a response."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "text": ({}, {"format": {"type": "text"}}),
        "truncation": ("disabled", "auto"),
        "background": (False,),
        "include": ([],),
        "reasoning": ({},),
        "top_logprobs": (0,),
        "service_tier": ("auto", "default"),
    }

    input: list[Message] = Field(min_length=1, max_length=1000)
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    previous_response_id: str | None = Field(default=None, max_length=100)
    store: bool = True

    @field_validator("input", mode="before")
    @classmethod
    def _as_message(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value


class EmbeddingsRequest(Fields):
    """A request for embeddings."""

    free: ClassVar[Sequence[str]] = ("user",)

    model: str
    input: list[str] = Field(min_length=1, max_length=256)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _with_texts(self) -> Self:
        if not all(self.input):
            raise PydanticCustomError("empty", "a text of the input is empty")
        return self


def conversation(messages: Sequence[Message], most: int) -> tuple[str, tuple[Turn, ...]]:
    """The question, which is the last message, and the turns before it.

    Args:
        most: characters of a question.

    Raises:
        ApiError: the last message is not a user's, or the question is empty or too long.
    """
    spoken = [message for message in messages if message.role in ("user", "assistant")]
    if not spoken or spoken[-1].role != "user":
        raise wrong("The last message must be a user's: it is the question.", "messages")
    question = spoken[-1].content
    if not question.strip():
        raise wrong("The question is empty: ask something.", "messages")
    if len(question) > most:
        raise wrong(
            f"The question has {len(question)} characters: ask with at most {most}; texts that are to be "
            f"read are uploaded as files.",
            "messages",
            "too_long",
        )
    turns: list[Turn] = []
    for message in spoken[:-1]:
        if message.role == "user" and message.content.strip():
            turns.append(Turn(message.content, Answer("", [])))
        elif message.role == "assistant" and turns:
            turns[-1] = Turn(turns[-1].question, Answer(message.content, []))
    return question, tuple(turns[-_TURNS:])


def _first(error: ValidationError) -> ApiError:
    """The first thing that is wrong, in a sentence that names the field and quotes nothing."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part)[:60] for part in first["loc"]) or "body"
    if first["type"] == "extra_forbidden":
        return wrong(f"The field {where!r} is not known here: leave it out.", where, "unknown_parameter")
    if first["type"] == "missing":
        return wrong(f"The field {where!r} is missing.", where, "missing_parameter")
    return wrong(f"The field {where!r} cannot be used: {first['msg'].rstrip('.')}.", where)
