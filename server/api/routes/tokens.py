"""Text to tokens and back, as this server's models do it; no engine is involved."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request

from server.api.allowed_models import find_model
from server.api.caller import caller_of
from server.api.chat import chat_options
from server.api.messages import to_messages
from server.api.openapi import documented
from server.api.routes.respond import read_body
from server.api.schemas.bodies import Detokenized, Rendered, TokenizerInfo, Tokens
from server.api.schemas.tokens import (
    NOT_HONOURED,
    ApplyTemplateRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from server.api.service import Service
from server.errors import InvalidRequestError
from server.types import ChatOptions, Message, Tokenizer


def tokens_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Tokens"])

    @router.post("/tokenize", **documented(TokenizeRequest, Tokens))
    async def tokenize(request: Request) -> Tokens:
        """Token ids of a text, or of a conversation as the model's template renders it."""
        asked = await read_body(request, service, TokenizeRequest, NOT_HONOURED)
        model = find_model(service.catalogue, caller_of(request), asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise InvalidRequestError("Send either 'prompt' or 'messages'.", param="prompt")
        if asked.prompt is not None:
            special = asked.add_special_tokens is not False
            ids = await asyncio.to_thread(
                lambda: model.tokenizer.encode(asked.prompt or "", add_special_tokens=special)
            )
        else:
            messages, options = _conversation(asked)
            ids = await asyncio.to_thread(model.tokenizer.encode_chat, messages, options)
        strings = None
        if asked.return_token_strs:
            strings = await asyncio.to_thread(_strings, model.tokenizer, ids)
        return Tokens(
            count=len(ids),
            max_model_len=service.catalogue.max_context,
            tokens=ids,
            token_strs=strings,
        )

    @router.post("/detokenize", **documented(DetokenizeRequest, Detokenized))
    async def detokenize(request: Request) -> Detokenized:
        """The text of token ids, control tokens included."""
        asked = await read_body(request, service, DetokenizeRequest, NOT_HONOURED)
        model = find_model(service.catalogue, caller_of(request), asked.model)
        size = service.catalogue.vocab_size
        if asked.tokens and max(asked.tokens) >= size:
            raise InvalidRequestError(
                f"'tokens': this model's token ids end at {size - 1} (got {max(asked.tokens)}).",
                param="tokens",
            )
        return Detokenized(prompt=await asyncio.to_thread(model.tokenizer.decode, asked.tokens))

    @router.get("/tokenizer_info", **documented(None, TokenizerInfo, not_found=True))
    def tokenizer_info(request: Request, model: str = "base") -> TokenizerInfo:
        """What a remote user of the tokenizer needs to know."""
        tokenizer = find_model(service.catalogue, caller_of(request), model).tokenizer
        return TokenizerInfo(
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            chat_template=tokenizer.chat_template,
            vocab_size=service.catalogue.vocab_size,
            model_max_length=service.catalogue.max_context,
        )

    @router.post("/apply-template", **documented(ApplyTemplateRequest, Rendered))
    async def apply_template(request: Request) -> Rendered:
        """The text that a conversation becomes. Forged control tokens show as they were written."""
        asked = await read_body(request, service, ApplyTemplateRequest, NOT_HONOURED)
        model = find_model(service.catalogue, caller_of(request), asked.model)
        messages, options = _conversation(asked)
        return Rendered(
            prompt=await asyncio.to_thread(model.tokenizer.render_chat, messages, options)
        )

    return router


def _strings(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.token_bytes(token_id).decode(errors="replace") for token_id in ids]


def _conversation(
    asked: TokenizeRequest | ApplyTemplateRequest,
) -> tuple[list[Message], ChatOptions]:
    messages = to_messages(asked.messages or ())
    tools = tuple(tool.model_dump(exclude_none=True) for tool in asked.tools or ())
    return messages, chat_options(asked, messages, tools)
