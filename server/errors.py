"""Everything that can go wrong, by whose fault it is. No HTTP here: api/errors.py maps these to status codes.

ServerError
├── RequestError                 the caller's: asking again unchanged will fail again
│   ├── InvalidRequestError      a field is wrong (names it)
│   │   ├── UnsupportedParameterError
│   │   ├── ContextLengthError
│   │   └── ChatTemplateError
│   ├── ModelNotFoundError
│   ├── ConflictError            an operator's wish that cannot be granted as things are
│   ├── NotServedError           no model here can do this kind of work
│   ├── AuthenticationError
│   ├── ForbiddenError
│   ├── HeadTooLargeError
│   ├── BodyTooLargeError
│   └── SlowBodyError
├── OverloadedError              nobody's: later it will work (has retry_after)
│   └── RateLimitError           the caller's key has used up what it may
├── DeadlineError                the request's time is up
├── UnavailableError             the model is loading, or the server is going away
│   └── CrowdedError             too many connections are open
├── EngineError                  ours: this request failed, the next may work
├── EngineDeadError              ours: the process should be restarted
└── StartupError                 the operator's: the server cannot start like this
    ├── KeyFileError
    ├── ModelLoadError
    └── AdapterError             one adapter version is refused; the others are served
"""

from __future__ import annotations


class ServerError(Exception):
    """Base of all our errors. str() is a sentence for its reader."""


class RequestError(ServerError):
    """The caller's fault."""


class InvalidRequestError(RequestError):
    """A field of the request is wrong. param: the field's path, where there is one."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class UnsupportedParameterError(InvalidRequestError):
    """A field this server does not honour has a value that would have an effect."""

    def __init__(self, param: str, detail: str = "") -> None:
        super().__init__(
            f"'{param}' is not supported by this server.{' ' + detail if detail else ''} Leave it out.",
            param=param,
            code="unsupported_parameter",
        )


class ContextLengthError(InvalidRequestError):
    """Prompt and answer do not fit. The wording is OpenAI's, because clients match on it.

    at_least: the prompt's tokens were not counted; there are prompt_tokens or more.
    """

    def __init__(
        self,
        max_context: int,
        prompt_tokens: int,
        max_tokens: int | None,
        *,
        at_least: bool = False,
    ) -> None:
        if max_tokens is None:
            count = f"at least {prompt_tokens}" if at_least else str(prompt_tokens)
            asked = f"your messages resulted in {count} tokens"
        else:
            asked = (
                f"you requested {prompt_tokens + max_tokens} tokens"
                f" ({prompt_tokens} in the messages, {max_tokens} in the completion)"
            )
        super().__init__(
            f"This model's maximum context length is {max_context} tokens. However, {asked}."
            " Please reduce the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )


class ChatTemplateError(InvalidRequestError):
    """The model's chat template refuses this conversation."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"The model's chat template refuses these messages: {reason}", param="messages"
        )


class ModelNotFoundError(RequestError):
    """No model of that name is served."""

    def __init__(self, name: str, available: list[str]) -> None:
        shown = ", ".join(available[:20]) + (", …" if len(available) > 20 else "")
        super().__init__(f"The model '{name}' does not exist here. This server has: {shown}.")


class ConflictError(RequestError):
    """What an operator asks for cannot be done as things are."""


class NotServedError(RequestError):
    """This kind of work is not done here."""


class AuthenticationError(RequestError):
    """No API key, or one that is not known."""


class ForbiddenError(RequestError):
    """Not for this caller, whatever it sends."""


class HeadTooLargeError(RequestError):
    """Address and headers are over the limit."""


class BodyTooLargeError(RequestError):
    """The request body is over the limit."""


class SlowBodyError(RequestError):
    """The request body did not arrive in time."""


class OverloadedError(ServerError):
    """The queue is full. retry_after: seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RateLimitError(OverloadedError):
    """The caller's key has used up its limit. kind: requests or tokens."""

    def __init__(self, message: str, kind: str, retry_after: int) -> None:
        super().__init__(message, retry_after)
        self.kind = kind


class DeadlineError(ServerError):
    """The request was not finished within its time."""


class UnavailableError(ServerError):
    """The server cannot take requests at the moment."""


class CrowdedError(UnavailableError):
    """All connections that there may be are in use."""


class EngineError(ServerError):
    """A step failed; the request is lost, the engine goes on."""


class EngineDeadError(ServerError):
    """The engine cannot go on."""


class StartupError(ServerError):
    """The server cannot start."""


class KeyFileError(StartupError):
    """The file with the API keys cannot be read."""


class ModelLoadError(StartupError):
    """The base model cannot be loaded."""


class AdapterError(StartupError):
    """An adapter version is not served, and why. kind: which check it failed, in one word."""

    def __init__(self, message: str, kind: str = "tensors") -> None:
        super().__init__(message)
        self.kind = kind
