"""The words that all layers of the server share. Standard library only; no behaviour beyond arithmetic.

request (the caller's) · choice (one of the request's n answers) · sequence (the engine's state of one choice) ·
batch (rows of one step) · step (one forward pass) · block (a fixed number of positions in the KV cache) ·
draft (a guessed token, computed before it is drawn) · event (what the engine says) · chunk (what the wire says) ·
adapter (LoRA weights) · base (the model under it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class FinishReason(StrEnum):
    STOP = "stop"  # an end token or a stop string
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the caller went away; never seen on the wire


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant's turn makes. arguments: a JSON object, as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. role: system, user, assistant or tool.

    name: of the speaker, or of the function whose result this is; templates may ignore it. tool_calls: of an
    assistant's turn. tool_call_id: of a tool's turn.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How a conversation is rendered.

    tools: OpenAI's tool objects, `{"type": "function", "function": {"name", "description", "parameters"}}`.
    add_generation_prompt: open the assistant's turn. continue_final_message: leave the last turn open instead, so
    that the answer goes on from its text.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    add_generation_prompt: bool = True
    continue_final_message: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's tokens are chosen and when they end. Defaults ask for nothing.

    The order of the steps, from logits to a token: logit_bias is added; repetition_penalty (arXiv:1909.05858,
    section 4.1: tokens of prompt and answer, logit divided if positive, else multiplied); presence_penalty and
    frequency_penalty (OpenAI's definition: logit -= frequency * count + presence * [count > 0], over the answer so
    far); banned and not allowed tokens are removed; temperature; top_k; top_p (arXiv:1904.09751); min_p
    (arXiv:2407.01082); one draw. Each filter keeps at least one token.
    """

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # nucleus mass, (0, 1]
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # of the most likely token's probability, [0, 1]
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0  # (0, …), 1 is off
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    max_tokens: int = 16  # 0 computes the prompt only (for its logprobs)
    min_tokens: int = 0  # no end token is drawn before so many
    stop: tuple[str, ...] = ()  # the answer ends before the first of these
    include_stop: bool = False  # show the stop string that ended the answer
    stop_token_ids: tuple[int, ...] = ()  # end the answer, in addition to the model's own
    ignore_eos: bool = False  # the model's own end tokens do not end the answer
    # The number of most likely tokens whose log-probabilities are told with each drawn token; None tells none.
    # Log-probabilities are of the model's own distribution: before penalties, filters and temperature.
    logprobs: int | None = None
    prompt_logprobs: int | None = None  # the same for the prompt's tokens, from the second on

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability, and the most likely tokens of its position, best first."""

    token_id: int
    logprob: float
    rank: int  # 1 is the most likely; ties count as better
    top: tuple[tuple[int, float], ...] = ()


class TokenConstraint(Protocol):
    """A grammar over tokens, at one point of one answer. Used from the engine's thread only."""

    def allowed(self) -> memoryview:
        """The tokens allowed now: one bit per token id, in 32-bit little-endian words, lowest bit first.

        At least ceil(vocab / 32) words. Valid until the next call of advance.
        """
        ...

    def advance(self, token_id: int) -> None:
        """Take the token that was drawn."""
        ...


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

    @property
    def digest(self) -> str:
        """Of the weights' content: equal only for equal adapters. The prefix cache is keyed by it."""
        ...


DEFAULT_CHAT_OPTIONS = ChatOptions()


class Tokenizer(Protocol):
    """A model's words: text to token ids and back, and conversations through its chat template."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def bos_token(self) -> str | None: ...

    @property
    def eos_token(self) -> str | None: ...

    @property
    def key(self) -> str:
        """Equal only for equal vocabularies, so that what is made from one can be kept."""
        ...

    def encode_chat(
        self,
        messages: Sequence[Message],
        options: ChatOptions = DEFAULT_CHAT_OPTIONS,
        *,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Token ids of the conversation. Raises ChatTemplateError if the template refuses it.

        max_tokens: as in encode.
        """
        ...

    def render_chat(
        self, messages: Sequence[Message], options: ChatOptions = DEFAULT_CHAT_OPTIONS
    ) -> str:
        """The text that encode_chat tokenises. Raises ChatTemplateError."""
        ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of plain text; words of control tokens in it become control tokens.

        Raises ContextLengthError if the text's length alone says that it has more than max_tokens; others are
        tokenised, and may have more all the same.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, control tokens included. Raises InvalidRequestError for ids that are none."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for in a text; its name's bytes if it is a control token."""
        ...

    def to_json(self) -> str:
        """The whole tokenizer in the form of tokenizer.json, for the grammar library."""
        ...


class ServedModel(Protocol):
    """What a `model` name of the API stands for: a base, or a base with one adapter version."""

    @property
    def id(self) -> str: ...

    @property
    def adapter(self) -> AdapterHandle | None: ...

    @property
    def stop_token_ids(self) -> frozenset[int]: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def text_decoder(self) -> TextDecoder: ...


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of the model list."""

    id: str
    root: str
    parent: str | None
    created: int  # Unix seconds
    digest: str | None = None  # of the weights: the base's or the adapter's


class Catalogue(Protocol):
    """The models this server has at the moment."""

    @property
    def vocab_size(self) -> int:
        """Rows of the base's embedding: every token id is below it."""
        ...

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
    # Prefix blocks are shared only within one scope: an API key's name, a cache_salt, or both.
    cache_scope: str = ""
    # Whose turn it takes: the name of the API key. Tenants share the engine evenly.
    tenant: str = ""
    # Makes the constraint of one choice; each choice has its own state.
    new_constraint: Callable[[], TokenConstraint] | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """One or more new tokens of a choice (several after speculation). text is empty while characters are held back.

    logprobs: of these tokens, if asked for; token_ids: the tokens themselves.
    """

    index: int
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The log-probabilities of the prompt's tokens, from its second on. Before any Delta of the choice."""

    index: int
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice, with the last of its text and tokens.

    cached_tokens: prompt tokens that were found computed. stop: what ended it with reason STOP: a stop string, a
    token id, or None.
    """

    index: int
    text: str
    reason: FinishReason
    completion_tokens: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The end of the whole request by a fault that was not the caller's."""

    error: Exception


Event = Delta | PromptScored | Finished | Failed


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's counters since its start, and what it is doing now. Counts of tokens unless named otherwise."""

    running: int = 0  # sequences
    waiting: int = 0  # sequences
    waiting_tokens: int = 0  # of prompts that wait to be computed
    blocks_used: int = 0  # KV blocks that running sequences hold
    blocks_cached: int = 0  # KV blocks that only the prefix cache holds
    blocks_total: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # of these, found
    drafted: int = 0
    drafts_accepted: int = 0
    preemptions: int = 0  # sequences put back to wait because KV blocks ran out
