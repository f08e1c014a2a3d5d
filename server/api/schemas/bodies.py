"""What answers look like: the models behind the OpenAPI document. The generating routes write their bodies by hand."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Shown(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Shown):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Shown):
    error: ErrorDetail


class Status(Shown):
    status: Literal["ok", "ready", "loading", "failed"]
    reason: str | None = None


class VersionBody(Shown):
    version: str


class PromptDetails(Shown):
    cached_tokens: int


class UsageBody(Shown):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TokenLogprobBody(Shown):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprobBody(TokenLogprobBody):
    top_logprobs: list[TokenLogprobBody]


class ChatLogprobs(Shown):
    content: list[ChosenLogprobBody]
    refusal: None


class CalledFunction(Shown):
    name: str
    arguments: str


class ToolCallBody(Shown):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Shown):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallBody] | None = None


class ChatChoice(Shown):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Shown):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageBody
    timings: dict[str, float] | None = None


class CompletionLogprobs(Shown):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class CompletionChoice(Shown):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Shown):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageBody
    timings: dict[str, float] | None = None


class ResponseBody(BaseModel):
    """A response object of OpenAI's Responses API."""

    model_config = ConfigDict(extra="allow")
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class ModelBody(Shown):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lorachat"] = "lorachat"
    root: str
    parent: str | None
    digest: str | None
    max_model_len: int


class ModelList(Shown):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class Tokens(Shown):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(Shown):
    prompt: str


class TokenizerInfo(Shown):
    bos_token: str | None
    eos_token: str | None
    chat_template: str | None
    vocab_size: int
    model_max_length: int


class Rendered(Shown):
    prompt: str
