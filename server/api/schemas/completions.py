"""The body of POST /v1/completions: a prompt without a chat template."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from server.api.schemas.chat import OTHER_SERVERS
from server.api.schemas.fields import Count, List, SamplingFields, TokenId, TopLogprobs
from server.api.schemas.parse import NotHonoured

MAX_PROMPTS = 64

NOT_HONOURED: NotHonoured = {
    **{name: values for name, values in OTHER_SERVERS.items() if name != "add_special_tokens"},
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
}

TokenIds = Annotated[List[TokenId], Field(min_length=1)]
Prompt = (
    str
    | TokenIds
    | Annotated[List[str], Field(min_length=1, max_length=MAX_PROMPTS)]
    | Annotated[List[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
)


class CompletionRequest(SamplingFields):
    """prompt: text or token ids, or a list of either. add_special_tokens: of a text prompt (BOS), true by default.

    In a text prompt the words of control tokens are control tokens: it is the model's raw input.
    """

    model: str
    prompt: Prompt
    max_tokens: Count | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    add_special_tokens: bool | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt[0], int):
            return [prompt]
        return list(prompt)
