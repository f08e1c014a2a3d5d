"""What can go wrong, as one exception that a person can read.

Every `ChatError` says what happened (`sentence`) and what to do about it (`next_step`); `kind` is
for code that must tell them apart. Which failure is which is decided in `client.api`, not here.
"""

from enum import Enum


class ErrorKind(Enum):
    AWAY = "away"  # nobody answers at the address
    NOT_A_SERVER = "not a server"  # something answers, but does not speak the protocol
    UNAUTHORIZED = "unauthorized"  # the key is missing or wrong
    UNKNOWN_MODEL = "unknown model"  # no such model, adapter or version
    REFUSED = "refused"  # the request itself is at fault: 400, 413, 422
    BUSY = "busy"  # the queue is full: 429
    LOADING = "loading"  # the model is not loaded yet: 503
    FAILED = "failed"  # the server's fault, before or in the middle of an answer
    BROKEN = "broken"  # the connection ended or fell silent before the answer did


class ChatError(Exception):
    """A failure told in a sentence with a next step; `str()` gives both.

    `retry_after_seconds` is the server's own wish, where it stated one.
    """

    def __init__(
        self,
        kind: ErrorKind,
        sentence: str,
        next_step: str,
        *,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(f"{sentence} {next_step}")
        self.kind = kind
        self.sentence = sentence
        self.next_step = next_step
        self.retry_after_seconds = retry_after_seconds
