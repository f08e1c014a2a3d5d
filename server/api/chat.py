"""A checked chat request -> a run of the engine, with what is needed to read its events."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from server.adapter_types import AdapterLease
from server.api.allowed_models import find_model
from server.api.caller import Caller
from server.api.chat_answer import ChoiceReader
from server.api.due import deadline_of, lease_in_time
from server.api.logprobs import LogprobWriter
from server.api.messages import to_messages
from server.api.run import Clock, Run
from server.api.sampling import TokenBudget, sampling_params
from server.api.schemas.chat import ChatRequest
from server.api.schemas.fields import SamplingFields
from server.api.service import Service
from server.api.structure import structure_of
from server.errors import InvalidRequestError
from server.grammar.constraint import GrammarConstraint
from server.types import ChatOptions, GenerationRequest, Message, TokenConstraint


@dataclass(frozen=True, slots=True)
class ChatRun:
    """A run and one reader per choice."""

    run: Run
    readers: list[ChoiceReader]


async def start_chat(
    service: Service, chat: ChatRequest, caller: Caller, id_prefix: str = "chatcmpl-"
) -> ChatRun:
    """Raises a ServerError, and then nothing was queued."""
    clock = Clock(begun=time.perf_counter())
    check_chat(chat)
    model = find_model(service.catalogue, caller, chat.model)
    n = check_n(service, chat)
    field = "max_tokens" if chat.max_completion_tokens is None else "max_completion_tokens"
    check_limit(service, chat.token_limit, field)
    messages = to_messages(chat.messages)
    structure = structure_of(chat, model.tokenizer.chat_template)
    options = chat_options(chat, messages, structure.tools)
    # Rendering and tokenising a long conversation takes time: not on the event loop.
    prompt_ids = await asyncio.to_thread(
        model.tokenizer.encode_chat,
        messages,
        options,
        max_tokens=service.catalogue.max_context,
    )
    check_caller(service, caller, len(prompt_ids))
    limit = chat.token_limit
    if limit is None:
        limit = service.default_max_tokens(len(prompt_ids))
    num_top = (chat.top_logprobs or 0) if chat.logprobs else None
    params = sampling_params(
        chat,
        TokenBudget(limit, logprobs=num_top),
        vocab_size=service.catalogue.vocab_size,
        is_constrained=structure.grammar is not None,
    )
    scope = caller.cache_scope(chat.cache_salt)
    new_constraint = None
    if structure.grammar is not None:
        new_constraint = await service.grammars.compile(
            structure.grammar, model.tokenizer, model.stop_token_ids, structure.param, scope
        )
    lease = await lease_in_time(service, model, deadline_of(caller, clock.begun))
    run = submit(
        service,
        GenerationRequest(
            id=f"{id_prefix}{secrets.token_hex(12)}",
            model=model,
            prompt_ids=tuple(prompt_ids),
            params=params,
            n=n,
            cache_scope=scope,
            tenant=caller.key_name,
        ),
        clock,
        caller,
        new_constraint,
        lease,
    )
    run.messages = messages
    writer = LogprobWriter(model.tokenizer)
    readers = [ChoiceReader(run.request, structure.new_parser, writer, num_top) for _ in range(n)]
    return ChatRun(run, readers)


def submit(
    service: Service,
    request: GenerationRequest,
    clock: Clock,
    caller: Caller,
    new_constraint: Callable[[], GrammarConstraint] | None = None,
    lease: AdapterLease | None = None,
) -> Run:
    """Raises what the engine raises, and then nothing was queued. check_caller comes first.

    lease: of the model's adapter; it ends with the run, or here.
    """
    constraints: list[GrammarConstraint] = []
    if new_constraint is not None:
        make = new_constraint

        def remembered() -> TokenConstraint:
            constraints.append(make())
            return constraints[-1]

        request = replace(request, new_constraint=remembered)
    clock.submitted = time.perf_counter()
    try:
        generation = service.engine.submit(request, None if lease is None else lease.adapter)
    except Exception:
        if lease is not None:
            lease.release()
        raise
    quota = None if caller.key is None else caller.key.quota
    if quota is not None:
        quota.spend_tokens(len(request.prompt_ids))
    deadline = deadline_of(caller, clock.begun)
    run = Run(
        service, generation, request, clock, constraints, lease, quota=quota, deadline=deadline
    )
    service.metrics.submitted(run)
    return run


def check_caller(service: Service, caller: Caller, prompt_tokens: int) -> None:
    """Whether a request of this caller may join the queue. Raises UnavailableError or RateLimitError."""
    service.check_open()
    if caller.key is not None:
        caller.key.quota.check_tokens(prompt_tokens)


def check_n(service: Service, fields: SamplingFields) -> int:
    n = fields.n or 1
    if n > service.max_choices:
        raise InvalidRequestError(
            f"'n': this server gives at most {service.max_choices} choices (got {n}).", param="n"
        )
    return n


def check_limit(service: Service, limit: int | None, param: str) -> None:
    most = service.max_answer_tokens
    if limit is not None and most is not None and limit > most:
        raise InvalidRequestError(
            f"'{param}' is too large: {limit}. This model supports at most {most} completion tokens, whereas you"
            f" provided {limit}.",
            param=param,
        )


def check_chat(chat: ChatRequest) -> None:
    """The rules between fields. Raises InvalidRequestError."""
    both = chat.max_tokens, chat.max_completion_tokens
    if None not in both and both[0] != both[1]:
        raise InvalidRequestError(
            "'max_tokens' and 'max_completion_tokens' mean the same and differ. Send one of them.",
            param="max_completion_tokens",
        )
    check_stream(chat)
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequestError(
            "'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs"
        )


def check_stream(fields: SamplingFields) -> None:
    if fields.stream_options is not None and not fields.stream:
        raise InvalidRequestError(
            "'stream_options' is only allowed when 'stream' is true.", param="stream_options"
        )


class Opening(Protocol):
    """The fields that say how the assistant's turn begins."""

    @property
    def add_generation_prompt(self) -> bool | None: ...

    @property
    def continue_final_message(self) -> bool | None: ...


def chat_options(
    chat: Opening, messages: list[Message], tools: tuple[dict[str, Any], ...]
) -> ChatOptions:
    """How the conversation is rendered. Raises InvalidRequestError for wishes that exclude each other."""
    goes_on = bool(chat.continue_final_message)
    if goes_on and chat.add_generation_prompt:
        raise InvalidRequestError(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.",
            param="continue_final_message",
        )
    if goes_on and (messages[-1].role != "assistant" or messages[-1].tool_calls):
        raise InvalidRequestError(
            "'continue_final_message' needs a last message with role 'assistant' and text.",
            param="continue_final_message",
        )
    return ChatOptions(
        tools=tools,
        add_generation_prompt=not goes_on and chat.add_generation_prompt is not False,
        continue_final_message=goes_on,
    )
