"""The wire: what a chat completion request may hold, and what the answers look like.

A field that would change the answer and is not honoured is refused by name; nothing is accepted and ignored.
Fields that only label a request (user, metadata, …) are accepted: they have no effect at OpenAI's either.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from server.errors import InvalidRequestError, UnsupportedParameterError
from server.types import Message

MAX_MESSAGES = 2048
MAX_STOP_STRINGS = 16  # OpenAI allows 4; clients of other servers send more
MAX_STOP_LENGTH = 256

# Known fields that are not honoured yet, and the values of them that ask for nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}
# The same for a message. Clients send an answer of ours back as they got it, nulls and all.
NOT_HONOURED_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}
# Labels: they name a request for its sender's own purposes.
LABELS = ("metadata", "prompt_cache_key", "safety_identifier", "user")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class TextPart(BaseModel):
    """A content part. Other types (images, audio) are refused by name."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value
            for name, value in fields.items()
            if not _asks_for_nothing(NOT_HONOURED_IN_MESSAGES, name, value)
        }

    def to_message(self) -> Message:
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        # "developer" is OpenAI's newer word for the same thing; templates know only "system".
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None


TokenLimit = Annotated[int, Field(ge=1, lt=2**63)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]


class ChatRequest(BaseModel):
    """A chat completion request after all checks that need nothing but itself."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def parse_chat_request(body: bytes) -> ChatRequest:
    """Raises InvalidRequestError (naming the field) for anything this server cannot do exactly as asked."""
    try:
        fields = _JsonObject.model_validate_json(body).model_extra or {}
    except ValidationError as error:
        raise InvalidRequestError(
            f"The body is not a JSON object: {error.errors()[0]['msg']}."
        ) from None
    for name in NOT_HONOURED.keys() & fields.keys():
        if not _asks_for_nothing(NOT_HONOURED, name, fields.pop(name)):
            raise UnsupportedParameterError(name)
    for name in LABELS:
        fields.pop(name, None)
    fields = {name: value for name, value in fields.items() if value is not None}
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _field_error(error) from None
    both = request.max_tokens, request.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' mean the same and differ. Send one of them.",
            param="max_completion_tokens",
        )
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )
    return request


class _JsonObject(BaseModel):
    """Any JSON object; pydantic's parser bounds depth and refuses NaN, and its messages give the position."""

    model_config = ConfigDict(extra="allow")


def _asks_for_nothing(table: dict[str, tuple[Any, ...]], name: str, value: object) -> bool:
    # 0.0 asks for as little as 0 does; False is not 0, though Python says so.
    return any(
        value == harmless and isinstance(value, bool) == isinstance(harmless, bool)
        for harmless in table.get(name, ())
    )


def _field_error(error: ValidationError) -> InvalidRequestError:
    details = error.errors()
    # A union reports one entry per member. Those of the wrong type say least; the deepest says most.
    detail = max(details, key=lambda d: (d["type"] not in _WRONG_MEMBER, len(d["loc"])))
    *outer, last = detail["loc"]
    path = [str(part) for part in outer if part not in _UNION_MEMBERS]
    if detail["type"] == "extra_forbidden":
        return UnsupportedParameterError(".".join([*path, str(last)]))
    if last not in _UNION_MEMBERS:
        path.append(str(last))
    name = ".".join(path)
    if detail["type"] == "missing":
        return InvalidRequestError(f"'{name}' is required.", param=name)
    given = detail["input"]
    shown = f" (got {given!r})" if isinstance(given, int | float | bool) else ""
    if isinstance(given, str) and len(given) <= 40:
        shown = f" (got {given!r})"
    message = detail["msg"][0].lower() + detail["msg"][1:]
    return InvalidRequestError(f"'{name}': {message}{shown}.", param=name)


_WRONG_MEMBER = frozenset({"string_type", "list_type"})
# Names that pydantic puts into a location for the member of a union, not for a field.
_UNION_MEMBERS = frozenset(
    {"str", "list[TextPart]", "constrained-str", "list[constrained-str]", "TextPart"}
)


class UsageBody(BaseModel):
    class Details(BaseModel):
        cached_tokens: int = 0

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Details


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class CompletionChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBody


class ModelBody(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lorachat"] = "lorachat"
    root: str
    parent: str | None
    max_model_len: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]
