"""The body of POST /v1/chat/completions: fields, ranges, and what is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

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

# Fields of other servers that would change an answer, and the values of them that change nothing.
OTHER_SERVERS: NotHonoured = {
    "add_special_tokens": (False,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "cache_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "grammar": ("",),
    "guided_choice": ([],),
    "guided_grammar": ("",),
    "guided_json": (),
    "guided_regex": ("",),
    "id_slot": (-1,),
    "json_schema": (),
    "length_penalty": (1,),
    "lora": ([],),
    "mirostat": (0,),
    "priority": (0,),
    "prompt_embeds": (),
    "repeat_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "structured_outputs": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
NOT_HONOURED: NotHonoured = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_logprobs": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
    **OTHER_SERVERS,
}


class TextPart(Wire):
    """A content part. Other types (images, audio) are refused by name."""

    type: Literal["text"]
    text: str


class FunctionCall(Wire):
    """arguments: a JSON object, as text."""

    name: Name
    arguments: str


class MessageToolCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Wire):
    """One turn. Only an assistant's turn with tool_calls may do without content."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | List[TextPart] | None = None
    name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    tool_calls: List[MessageToolCall] | None = None
    tool_call_id: str | None = None
    # Clients send an answer of ours back as they got it. Of these, only null and [] are accepted.
    audio: None = None
    function_call: None = None
    refusal: None = None
    annotations: Annotated[List[Any], Field(max_length=0)] | None = None
    parsed: Any = None  # the official client's own note on an answer


class FunctionTool(Wire):
    """parameters: a JSON Schema of an object; none means no parameters. strict: calls always satisfy it."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Tool(Wire):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Wire):
    type: Literal["text"]


class JsonObjectFormat(Wire):
    type: Literal["json_object"]


class JsonSchema(Wire):
    """The answer always satisfies the schema, whatever strict says."""

    name: Name
    description: str | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class JsonSchemaFormat(Wire):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


class ChatRequest(SamplingFields):
    """A chat completion request after all checks that need nothing but itself."""

    model: str
    messages: Annotated[List[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[List[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    metadata: Metadata | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
