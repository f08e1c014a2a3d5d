"""The words shared by the client's files: what is asked, and what comes back.

Plain values; nothing here knows HTTP, Gradio or the terminal.
"""

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the answer is drawn. `max_tokens` counts new tokens only.

    `top_k` 0, `min_p` 0 and `repetition_penalty` 1 are off (vLLM's extensions of OpenAI's API);
    `seed` None lets the server choose.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A whole question: the model's name, the conversation so far, and the sampling."""

    model: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class Standing:
    """How one version (`NAME@VERSION`) fares at the server, and why where it is not served.

    `state` is the server's word: serving, loaded, pinned, available, draining, unloaded, refused.
    """

    id: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One line of the server's model list.

    The base has no parent. An adapter is listed by its name (its latest version, `root` being
    `NAME@VERSION`) and once more under each `NAME@VERSION`.
    """

    id: str
    root: str
    parent: str | None
    max_model_len: int | None
    digest: str | None = None

    @property
    def is_base(self) -> bool:
        return self.parent is None

    @property
    def is_pinned(self) -> bool:
        """Whether the name pins one version of an adapter."""
        return not self.is_base and "@" in self.id

    @property
    def label(self) -> str:
        """What a person picks from a list."""
        if self.is_base:
            return self.id if self.root == self.id else f"{self.id} · {self.root.split('/')[-1]}"
        if self.is_pinned or "@" not in self.root:
            return self.id
        return f"{self.id} · latest, {self.root.partition('@')[2]}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the server reports them. `cached_tokens` is the part of the prompt reused."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds on the client's clock, from sending the request.

    `tokens_per_second` is the pace of decoding: tokens after the first, over the time from the
    first to the last; None where it cannot be known (no usage, or fewer than two tokens).
    """

    first_token_seconds: float | None
    total_seconds: float
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete: the last event of every stream that does not raise."""

    finish_reason: str
    model: str
    usage: Usage | None
    timings: Timings


Event = Delta | Done


def first_adapter(models: list[Model]) -> str | None:
    """The first adapter by name (its latest version), or None where only the base is served."""
    return next((m.id for m in models if not m.is_base and not m.is_pinned), None)


def base_model(models: list[Model]) -> str | None:
    return next((m.id for m in models if m.is_base), None)


def default_model(models: list[Model]) -> str | None:
    """Whom to ask when nobody was named: the first adapter, else the base, else the first."""
    return first_adapter(models) or base_model(models) or (models[0].id if models else None)
