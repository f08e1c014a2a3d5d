"""The body of POST /v1/responses: text and function tools, without state on the server."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from server.api.schemas.chat import OTHER_SERVERS, FunctionTool, JsonObjectFormat, TextFormat
from server.api.schemas.fields import (
    MAX_MESSAGES,
    MAX_TOOLS,
    List,
    Metadata,
    Name,
    SamplingFields,
    Schema,
    TokenLimit,
    TopLogprobs,
    Wire,
)
from server.api.schemas.parse import NotHonoured

LOGPROBS = "message.output_text.logprobs"

NOT_HONOURED: NotHonoured = {
    **OTHER_SERVERS,
    "background": (False,),
    "conversation": (),
    "max_tool_calls": (),
    "moderation": (),
    "n": (1,),
    "previous_response_id": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": "none"}, {"effort": None, "summary": None}),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "truncation": ("disabled",),
}


class InputPart(Wire):
    """Text given or text once answered. Other types (images, files) are refused by name."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    # Clients send items of an answer back as they got them.
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(Wire):
    """A turn, or a call and its result. Which fields are needed depends on type."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | List[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | List[InputPart] | None = None
    id: str | None = None
    status: str | None = None


class ResponseTool(FunctionTool):
    """As in chat completions, one level flatter."""

    type: Literal["function"]


class ResponseNamedTool(Wire):
    type: Literal["function"]
    name: str


class ResponseJsonSchema(Wire):
    type: Literal["json_schema"]
    name: Name
    schema_: Annotated[Schema, Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Wire):
    format: (
        Annotated[TextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class ResponseRequest(SamplingFields):
    """Nothing is stored: every request brings its whole conversation. The sampling fields of chat work here too."""

    model: str
    input: str | Annotated[List[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: TokenLimit | None = None
    tools: Annotated[List[ResponseTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    top_logprobs: TopLogprobs | None = None
    include: List[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = (
        None
    )
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def wants_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)

    def sampling(self) -> dict[str, Any]:
        """The fields that chat completions have too, by the same names."""
        names = (*SamplingFields.model_fields, "parallel_tool_calls")
        fields = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        fields.pop("stream_options", None)
        return fields
