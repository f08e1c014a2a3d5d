"""Types and limits that request bodies share. OpenAI's ranges, where OpenAI has the field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_MESSAGES = 2048
MAX_STOP_STRINGS = 16  # OpenAI allows 4; clients of other servers send more
MAX_STOP_LENGTH = 256
MAX_STOP_TOKENS = 64
MAX_LOGIT_BIAS = 1024
MAX_TOOLS = 128
MAX_METADATA = 16
MAX_TOP_LOGPROBS = 20
NAME = r"^[a-zA-Z0-9_-]{1,64}$"


Entry = TypeVar("Entry")
# Errors of all entries of a body of a few MiB would take gigabytes and seconds, to tell of one.
List = Annotated[list[Entry], Field(fail_fast=True)]


class Wire(BaseModel):
    """A part of a request. Fields that are not known are kept apart: they have no effect, and are counted."""

    model_config = ConfigDict(extra="allow", strict=True)


Number = Annotated[float, Field(allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=0, le=2)]
TopP = Annotated[Number, Field(gt=0, le=1)]
TopK = Annotated[int, Field(ge=-1, lt=2**31)]
MinP = Annotated[Number, Field(ge=0, le=1)]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
RepetitionPenalty = Annotated[Number, Field(gt=0, le=10)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
LogitBias = Annotated[dict[str, Bias], Field(max_length=MAX_LOGIT_BIAS)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenLimit = Annotated[int, Field(ge=1, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Choices = Annotated[int, Field(ge=1, le=128)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Stop = StopString | Annotated[List[StopString], Field(max_length=MAX_STOP_STRINGS)]
StopTokenIds = Annotated[List[TokenId], Field(max_length=MAX_STOP_TOKENS)]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]
CacheSalt = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Name = Annotated[str, StringConstraints(pattern=NAME)]
Metadata = Annotated[dict[str, str], Field(max_length=MAX_METADATA)]
Schema = dict[str, Any]


class StreamOptions(Wire):
    """include_usage: a last chunk with the usage. continuous_usage_stats: the usage so far in every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(Wire):
    """How tokens are chosen and when they end, in every endpoint that generates."""

    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    stop_token_ids: StopTokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    cache_salt: CacheSalt | None = None
    timings: bool | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
