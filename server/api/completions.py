"""A checked completion request -> runs of the engine, one per prompt."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, replace

from server.api.allowed_models import find_model
from server.api.caller import Caller
from server.api.chat import check_caller, check_limit, check_n, check_stream, submit
from server.api.due import deadline_of, lease_in_time
from server.api.run import Clock, Run
from server.api.sampling import TokenBudget, sampling_params
from server.api.schemas.completions import CompletionRequest
from server.api.service import Service
from server.errors import ContextLengthError, InvalidRequestError
from server.types import Event, Failed, GenerationRequest, ServedModel, Usage

DEFAULT_MAX_TOKENS = 16  # OpenAI's


@dataclass(frozen=True, slots=True)
class CompletionRuns:
    """runs: one per prompt, in their order. prompts: the text of each. Choices are numbered across prompts."""

    runs: list[Run]
    prompts: list[str]
    n: int

    async def next_event(self) -> Event | None:
        """Prompt after prompt; the events of later ones wait in their queues. None after the last."""
        for number, run in enumerate(self.runs):
            event = await run.next_event()
            if event is None and not run.has_failed:
                continue
            if event is None or isinstance(event, Failed) or number == 0:
                return event
            return replace(event, index=number * self.n + event.index)
        return None

    def close(self) -> None:
        for run in self.runs:
            run.close()

    @property
    def usage(self) -> Usage:
        usages = [run.usage for run in self.runs]
        return Usage(
            sum(usage.prompt_tokens for usage in usages),
            sum(usage.completion_tokens for usage in usages),
            sum(usage.cached_tokens for usage in usages),
        )


async def start_completion(
    service: Service, request: CompletionRequest, caller: Caller
) -> CompletionRuns:
    """Raises a ServerError, and then nothing is computed."""
    clock = Clock(begun=time.perf_counter())
    check_stream(request)
    n = check_n(service, request)
    if request.best_of not in (None, n):
        raise InvalidRequestError(
            f"'best_of': this server returns every answer it computes: leave it out, or send {n}, the value"
            " of 'n'.",
            param="best_of",
        )
    limit = DEFAULT_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if limit == 0 and not request.echo:
        raise InvalidRequestError(
            "'max_tokens' can be 0 only with 'echo', for the prompt alone.", param="max_tokens"
        )
    check_limit(service, request.max_tokens, "max_tokens")
    model = find_model(service.catalogue, caller, request.model)
    vocab_size = service.catalogue.vocab_size
    params = sampling_params(
        request,
        TokenBudget(
            limit,
            logprobs=request.logprobs,
            prompt_logprobs=request.logprobs if request.echo else None,
        ),
        vocab_size=vocab_size,
        is_constrained=False,
    )
    try:
        encoded = await asyncio.to_thread(
            _encode, request, model, vocab_size, service.catalogue.max_context
        )
    except ContextLengthError as error:
        error.param = "prompt"
        raise
    check_caller(service, caller, sum(len(ids) for ids, _ in encoded))
    id_ = f"cmpl-{secrets.token_hex(12)}"
    started = CompletionRuns([], [text for _, text in encoded], n)
    lease = await lease_in_time(service, model, deadline_of(caller, clock.begun))
    try:
        for ids, _ in encoded:
            generation = GenerationRequest(
                id=id_,
                model=model,
                prompt_ids=tuple(ids),
                params=params,
                n=n,
                cache_scope=caller.cache_scope(request.cache_salt),
                tenant=caller.key_name,
            )
            # One lease for all, shared: a second one could wait for the first to end.
            shared = None if lease is None else lease.share()
            started.runs.append(
                submit(service, generation, Clock(clock.begun), caller, lease=shared)
            )
    except ContextLengthError as error:
        started.close()
        error.param = "prompt"
        raise
    except Exception:
        started.close()
        raise
    finally:
        if lease is not None:
            lease.release()
    return started


def _encode(
    request: CompletionRequest, model: ServedModel, vocab_size: int, max_context: int
) -> list[tuple[list[int], str]]:
    """Token ids and text of every prompt. Raises InvalidRequestError."""
    tokenizer = model.tokenizer
    encoded = []
    for prompt in request.prompts:
        if isinstance(prompt, str):
            ids = tokenizer.encode(
                prompt,
                add_special_tokens=request.add_special_tokens is not False,
                max_tokens=max_context,
            )
            text = prompt
        else:
            ids = prompt
            if max(ids) >= vocab_size:
                raise InvalidRequestError(
                    f"'prompt': this model's token ids end at {vocab_size - 1} (got {max(ids)}).",
                    param="prompt",
                )
            text = tokenizer.decode(ids)
        if not ids:
            raise InvalidRequestError("'prompt' is empty.", param="prompt")
        encoded.append((ids, text))
    return encoded
