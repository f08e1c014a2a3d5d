"""The bodies of /tokenize, /detokenize and /apply-template, as vLLM has them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.schemas.chat import ChatMessage, Tool
from server.api.schemas.fields import MAX_MESSAGES, MAX_TOOLS, List, TokenId, Wire
from server.api.schemas.parse import NotHonoured

NOT_HONOURED: NotHonoured = {
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
}

Messages = Annotated[List[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
Tools = Annotated[List[Tool], Field(max_length=MAX_TOOLS)]


class TokenizeRequest(Wire):
    """Either prompt or messages. add_special_tokens: of a prompt, true by default. model: `base` by default."""

    model: str = "base"
    prompt: str | None = None
    messages: Messages | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Wire):
    model: str = "base"
    tokens: List[TokenId]


class ApplyTemplateRequest(Wire):
    model: str = "base"
    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
