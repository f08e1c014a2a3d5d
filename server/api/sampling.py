"""The wire's sampling fields -> SamplingParams, with the checks that need the model."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from server.api.schemas.fields import SamplingFields
from server.errors import InvalidRequestError
from server.types import SamplingParams


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """limit: of the answer, in tokens. logprobs, prompt_logprobs: as in SamplingParams."""

    limit: int
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def sampling_params(
    fields: SamplingFields, budget: TokenBudget, *, vocab_size: int, is_constrained: bool
) -> SamplingParams:
    """Raises InvalidRequestError for tokens the model has not, and for fields that exclude each other."""
    min_tokens = fields.min_tokens or 0
    if min_tokens > budget.limit:
        raise InvalidRequestError(
            f"'min_tokens': {min_tokens} is more than the answer's limit of {budget.limit} tokens.",
            param="min_tokens",
        )
    if is_constrained:
        # The grammar says where the answer ends; after that it allows nothing but end tokens.
        for name, value in (("min_tokens", min_tokens), ("ignore_eos", fields.ignore_eos)):
            if value:
                raise InvalidRequestError(
                    f"'{name}' cannot be used where a grammar decides when the answer ends"
                    " (response_format, or forced or strict tools).",
                    param=name,
                )
    for token_id in fields.stop_token_ids or ():
        _check_token(token_id, "stop_token_ids", vocab_size)
    return SamplingParams(
        temperature=_or(fields.temperature, 1.0),
        top_p=_or(fields.top_p, 1.0),
        top_k=max(0, fields.top_k or 0),  # -1 is vLLM's word for off
        min_p=_or(fields.min_p, 0.0),
        presence_penalty=_or(fields.presence_penalty, 0.0),
        frequency_penalty=_or(fields.frequency_penalty, 0.0),
        repetition_penalty=_or(fields.repetition_penalty, 1.0),
        logit_bias=_logit_bias(fields.logit_bias or {}, vocab_size),
        seed=secrets.randbits(63) if fields.seed is None else fields.seed,
        max_tokens=budget.limit,
        min_tokens=min_tokens,
        stop=fields.stop_strings,
        include_stop=bool(fields.include_stop_str_in_output),
        stop_token_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        logprobs=budget.logprobs,
        prompt_logprobs=budget.prompt_logprobs,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def _logit_bias(bias: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    pairs = []
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise InvalidRequestError(
                f"'logit_bias': keys must be token ids (got {key[:40]!r}).", param="logit_bias"
            )
        _check_token(int(key), "logit_bias", vocab_size)
        pairs.append((int(key), float(value)))
    return tuple(pairs)


def _check_token(token_id: int, param: str, vocab_size: int) -> None:
    if token_id >= vocab_size:
        raise InvalidRequestError(
            f"'{param}': this model's token ids end at {vocab_size - 1} (got {token_id}).",
            param=param,
        )
