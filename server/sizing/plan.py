"""From a load and a machine to replicas, memory, pace and cost. Means only; the simulation shows the spread."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.errors import StartupError
from server.memory import KV_CACHE_CONTEXTS, RESERVED_BYTES, adapter_budget, kv_cache_budget
from server.settings import Settings
from server.sizing.model_cost import ModelCost
from server.sizing.step_time import Machine, StepWork, step_seconds


class SizingError(StartupError):
    """No number of such machines carries this load; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Load:
    """users: people who chat at the same time. think_seconds: from the end of an answer to the next question.

    prompt_tokens: of a request, the whole conversation so far; cached_share of them are found in the prefix cache.
    tokens_per_second: wanted for each user while an answer is written. first_token_seconds: the most its first token
    may take, on average. utilisation: how much of what a replica could carry is planned for; the rest is for the
    moments when more than the mean come.
    """

    users: int
    tokens_per_second: float
    prompt_tokens: float
    answer_tokens: float
    cached_share: float = 0.0
    think_seconds: float = 30.0
    first_token_seconds: float = math.inf
    adapters: int = 0
    utilisation: float = 0.8

    @property
    def new_tokens(self) -> float:
        """Prompt tokens of a request that are computed; the last one always is."""
        return max(1.0, self.prompt_tokens * (1 - self.cached_share))

    @property
    def context(self) -> float:
        return self.prompt_tokens + self.answer_tokens


@dataclass(frozen=True, slots=True)
class Limits:
    """The server's own settings that shape a step: --max-running, --max-step-tokens, --max-prefill-tokens."""

    max_running: int = Settings.model_fields["max_running"].default
    max_step_tokens: int = Settings.model_fields["max_step_tokens"].default
    max_prefill_tokens: int = Settings.model_fields["max_prefill_tokens"].default


@dataclass(frozen=True, slots=True)
class Pace:
    """A replica with so many requests at the same time, in balance. Seconds, and output tokens/s."""

    concurrency: int
    token_seconds: float
    first_token_seconds: float
    request_seconds: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one replica. kv_cache: the server's default for this machine."""

    weights: int
    adapters: int
    kv_cache: int
    reserved: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.kv_cache + self.reserved


@dataclass(frozen=True, slots=True)
class Plan:
    """pace: a replica's at the most it may carry within the load's wishes.

    users_per_replica: planned for. tokens_per_second: of all replicas at this load. cost_per_million: price of a
    million output tokens if the load is there all the time; infinite where nothing is asked.
    warm_conversations: whole contexts that stay in a replica's KV cache beside those that are being answered.
    limited_by: what keeps a replica from answering one more request at the same time. requests_per_second: of the load.
    """

    replicas: int
    users_per_replica: float
    pace: Pace
    limited_by: str
    memory: Memory
    cache_tokens: int
    warm_conversations: float
    requests_per_second: float
    tokens_per_second: float
    cost_per_million: float


def pace(model: ModelCost, machine: Machine, load: Load, limits: Limits, concurrency: int) -> Pace:
    """A closed loop of `concurrency` requests, each followed by the next at once, as a fluid.

    A request takes S steps: one for each answer token, and one for each piece of its prompt. Beside decoding rows all
    prompts together get max_prefill_tokens a step (server/engine/scheduler.py), so with N requests, P new prompt
    tokens and G answer tokens of each

        S = max(P / piece + G, N · P / piece),  N·G/S rows decode and N·P/S prompt tokens are computed in a mean step.

    One request alone has its prompt computed in pieces of max_step_tokens, before its answer.
    """
    new, answer = load.new_tokens, load.answer_tokens
    context = load.prompt_tokens + answer / 2  # of a row that decodes, on average
    cached = load.prompt_tokens - new
    if concurrency == 1:
        token = step_seconds(model, machine, _work(load, 1, 0, context, 0))
        first, start = 0.0, cached
        while start < load.prompt_tokens:
            piece = min(limits.max_step_tokens, load.prompt_tokens - start)
            first += step_seconds(model, machine, _work(load, 0, piece, 0, start))
            start += piece
        total = first + answer * token
    else:
        piece = limits.max_prefill_tokens
        steps = max(new / piece + answer, concurrency * new / piece)
        rows, prompt = concurrency * answer / steps, concurrency * new / steps
        token = step_seconds(model, machine, _work(load, rows, prompt, context, cached + new / 2))
        # A request comes in the middle of a step, on average.
        first = (steps - answer + 0.5) * token
        total = steps * token
    return Pace(concurrency, token, first, total, concurrency * answer / total)


def memory(model: ModelCost, machine: Machine, max_context: int, adapters: int) -> Memory:
    """As the server divides it by default (server/memory.py). Raises SizingError if nothing is left for the cache.

    Of more adapters than there is room for, the server keeps those that were asked for last.
    """
    kv_cache = kv_cache_budget(
        machine.memory_bytes,
        model.weight_bytes,
        KV_CACHE_CONTEXTS * max_context * model.cache_bytes_per_token,
    )
    room = adapter_budget(machine.memory_bytes, model.weight_bytes)
    kept = min(adapters * model.adapter_bytes, room)
    parts = Memory(model.weight_bytes, kept, kv_cache, RESERVED_BYTES)
    if kv_cache <= 0 or parts.total > machine.memory_bytes:
        raise SizingError(
            f"the weights ({parts.weights / 1e9:.1f} GB) and what the server reserves ({RESERVED_BYTES / 1e9:.1f} GB)"
            f" take {(parts.weights + RESERVED_BYTES) / 1e9:.1f} GB, and a KV cache and adapters come on top; the"
            f" machine has {machine.memory_bytes / 1e9:.1f} GB. Take one with more memory (--memory), or a smaller"
            " model."
        )
    return parts


def plan(
    model: ModelCost, machine: Machine, load: Load, max_context: int, limits: Limits | None = None
) -> Plan:
    """Raises SizingError where even one request at a time is too slow or does not fit.

    The number of requests at the same time is the largest that keeps every wish. With L the seconds a request then
    takes and Z those between two requests of a user, N requests at the same time are those of N · (Z + L) / L users:
    the interactive response time law (Denning and Buzen 1978, doi:10.1145/356733.356735).
    """
    limits = limits or Limits()
    if load.context > max_context:
        raise SizingError(
            f"prompt and answer come to {load.context:.0f} tokens, and the context is {max_context}."
            " Ask for fewer (--prompt, --answer), or for a longer context (--max-context), as far as the model has"
            " positions."
        )
    parts = memory(model, machine, max_context, load.adapters)
    cache_tokens = parts.kv_cache // model.cache_bytes_per_token
    fitting = int(cache_tokens // load.context)
    if fitting == 0:
        raise SizingError(
            f"the KV cache of this machine holds {cache_tokens} tokens, less than one request of {load.context:.0f}."
            " Take one with more memory (--memory)."
        )
    kept: Pace | None = None
    limited_by = "KV cache (--memory)" if fitting < limits.max_running else "--max-running"
    for concurrency in range(1, min(limits.max_running, fitting) + 1):
        found = pace(model, machine, load, limits, concurrency)
        if found.token_seconds * load.tokens_per_second > 1:
            limited_by = "--tokens-per-second"
            break
        if found.first_token_seconds > load.first_token_seconds:
            limited_by = "--first-token-seconds"
            break
        kept = found
    if kept is None:
        alone = pace(model, machine, load, limits, 1)
        raise SizingError(
            f"one request alone gets {1 / alone.token_seconds:.1f} tokens/s and its first token after"
            f" {alone.first_token_seconds:.1f} s here. More of these machines do not change that: take one with more"
            " memory bandwidth (pace) or more FLOP/s (first token), a smaller model, or ask for less."
        )
    cycle = load.think_seconds + kept.request_seconds
    users_per_replica = load.utilisation * kept.concurrency * cycle / kept.request_seconds
    replicas = max(1, math.ceil(load.users / users_per_replica))
    tokens = load.users * load.answer_tokens / cycle
    return Plan(
        replicas=replicas,
        users_per_replica=users_per_replica,
        pace=kept,
        limited_by=limited_by,
        memory=parts,
        cache_tokens=cache_tokens,
        warm_conversations=cache_tokens / load.context - kept.concurrency,
        requests_per_second=load.users / cycle,
        tokens_per_second=tokens,
        cost_per_million=replicas * machine.price_per_hour / (tokens * 3600) * 1e6,
    )


def _work(load: Load, rows: float, prompt: float, context: float, before: float) -> StepWork:
    """rows that decode at `context` positions, and prompt tokens that come after `before` others."""
    adapters = min(load.adapters, rows + (1 if prompt else 0)) if load.adapters else 0
    return StepWork(
        decoding_tokens=rows,
        prompt_tokens=prompt,
        cache_tokens=rows * context + (before if prompt else 0),
        attended=rows * context + prompt * (before + prompt / 2),
        adapters=adapters,
    )
