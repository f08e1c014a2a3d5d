"""The words that all layers of the server share. Standard library only; no behaviour beyond arithmetic.

request (the caller's) · choice (one of the request's n answers) · sequence (the engine's state of one choice) ·
batch (rows of one step) · step (one forward pass) · slot (a sequence's place in the KV cache) ·
event (what the engine says) · chunk (what the wire says) · adapter (LoRA weights) · base (the model under it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class FinishReason(StrEnum):
    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the caller went away; never seen on the wire


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. role: system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen and when they end."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # nucleus mass, (0, 1]
    seed: int = 0
    max_tokens: int = 16
    stop: tuple[str, ...] = ()  # the answer ends before the first of these


class TextDecoder(Protocol):
    """Token ids of one answer in, printable text out. Never gives half a character."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class AdapterHandle(Protocol):
    """Identifies adapter weights for the runner. The engine only passes it on and compares it."""

    @property
    def key(self) -> str:
        """Different for every loaded version: `NAME@VERSION`."""
        ...


class ServedModel(Protocol):
    """What a `model` name of the API stands for: a base, or a base with one adapter version."""

    @property
    def id(self) -> str: ...

    @property
    def adapter(self) -> AdapterHandle | None: ...

    @property
    def stop_token_ids(self) -> frozenset[int]: ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of the conversation and the opening of the assistant's turn.

        Raises ChatTemplateError if the model's template refuses the conversation.
        """
        ...

    def text_decoder(self) -> TextDecoder: ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of the model list."""

    id: str
    root: str
    parent: str | None
    created: int  # Unix seconds


class Catalogue(Protocol):
    """The models this server has at the moment."""

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the base's weights."""
        ...

    def find(self, name: str) -> ServedModel:
        """Raises ModelNotFoundError."""
        ...

    def list(self) -> Sequence[ModelInfo]: ...


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request, ready for the engine: the prompt is tokens, the model is resolved."""

    id: str
    model: ServedModel
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    n: int = 1


@dataclass(frozen=True, slots=True)
class Delta:
    """One more token of a choice. text is empty while characters are held back."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice, with the last of its text."""

    index: int
    text: str
    reason: FinishReason
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of the whole request by a fault that was not the caller's."""

    error: Exception


Event = Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
