"""The bodies of docs/contracts.md, section 2, to and from the client's own values; no I/O.

Readers raise KeyError, TypeError, ValueError or AttributeError on bodies of another shape, which
the caller turns into a `ChatError`. `status_error` tables what each status means to a person.
"""

import email.utils
import re
import time
from typing import Any

import httpx

from client.errors import ChatError, ErrorKind
from client.types import ChatRequest, Model, Standing, Usage


def request_body(request: ChatRequest) -> dict[str, Any]:
    """The body of `POST /v1/chat/completions`, streamed and with token counts.

    Settings that are off are left out, so that a server without them can be asked too; one that
    is set is sent, and such a server refuses it by name.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.min_p:
        body["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1:
        body["repetition_penalty"] = sampling.repetition_penalty
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def model(entry: dict[str, Any]) -> Model:
    """One entry of the model list. Servers of other makes leave all but the id out."""
    name = str(entry["id"])
    return Model(
        name,
        entry.get("root") or name,
        entry.get("parent"),
        entry.get("max_model_len"),
        entry.get("digest"),
    )


def standing(entry: dict[str, Any]) -> Standing:
    """One entry of the operator's list of adapters."""
    return Standing(str(entry["id"]), str(entry["state"]), str(entry.get("reason") or ""))


def choice(chunk: dict[str, Any]) -> tuple[str, str | None]:
    """Text and finish reason of the first choice; ("", None) in a chunk without one."""
    for entry in chunk["choices"]:
        if entry.get("index", 0) == 0:
            return entry["delta"].get("content") or "", entry.get("finish_reason")
    return "", None


def usage(chunk: dict[str, Any]) -> Usage | None:
    """The token counts, where the chunk has them."""
    body = chunk.get("usage")
    if body is None:
        return None
    details = body.get("prompt_tokens_details") or {}
    return Usage(
        prompt_tokens=int(body["prompt_tokens"]),
        completion_tokens=int(body["completion_tokens"]),
        cached_tokens=int(details.get("cached_tokens") or 0),
    )


def stream_error(chunk: dict[str, Any]) -> ChatError | None:
    """The error, where the chunk is the one event that reports a failure in mid-answer."""
    if not chunk.get("error"):
        return None
    return ChatError(
        ErrorKind.FAILED,
        f"The answer broke off: {_sentence(_message(chunk))}",
        "What came before it is shown; try again for a whole answer.",
    )


def status_error(response: httpx.Response, asked_model: str | None, has_key: bool) -> ChatError:
    """The error for a response whose status is not 2xx and whose body has been read."""
    body = _error_body(response)
    message = _message(body)
    code = body["error"].get("code") if body else None
    wait = _retry_after(response)
    match response.status_code:
        case 401 | 403:
            return ChatError(
                ErrorKind.UNAUTHORIZED,
                "The server does not accept this API key."
                if has_key
                else "The server asks for an API key.",
                "Enter one of the server's keys under Settings, or set LORACHAT_API_KEY.",
            )
        case 404 if code == "model_not_found" and asked_model is not None:
            return ChatError(
                ErrorKind.UNKNOWN_MODEL,
                f"The server has no model named “{asked_model}”.",
                "Pick another one from the list of models.",
            )
        case 400 | 413 | 422 if message:
            return ChatError(
                ErrorKind.REFUSED,
                _sentence(message),
                _too_long(message)
                if code == "context_length_exceeded"
                else "Change the question or the settings, and send it again.",
            )
        case 429:
            return ChatError(
                ErrorKind.BUSY,
                "The server is busy and takes no more questions just now.",
                f"Try again in {wait:.0f} s." if wait else "Try again in a moment.",
                retry_after_seconds=wait,
            )
        case 503:
            return ChatError(
                ErrorKind.LOADING,
                f"The server is not ready: {_sentence(message)}"
                if message
                else "The server is not ready: it is still loading its model.",
                f"Try again in {wait:.0f} s." if wait else "Wait a moment and try again.",
                retry_after_seconds=wait,
            )
        case status if status >= 500:
            return ChatError(
                ErrorKind.FAILED,
                f"The server failed ({status}): {_sentence(message)}",
                "Try again; if it stays so, the server's log has the reason.",
            )
    return not_a_chat_server(str(response.request.url))


def not_a_chat_server(address: str) -> ChatError:
    """The error for an answer in another language than ours."""
    return ChatError(
        ErrorKind.NOT_A_SERVER,
        f"What answers at {address} is not a chat server of the expected kind.",
        "Check the server's address (--server or LORACHAT_SERVER).",
    )


def _too_long(message: str) -> str:
    """What to do about a prompt that does not fit, and by how much, where OpenAI's wording tells."""
    numbers = re.search(r"length is (\d+) tokens\D+(\d+)", message)
    excess = int(numbers[2]) - int(numbers[1]) if numbers else 0
    much = f"That is {excess} too many: start" if excess > 0 else "Start"
    return f"{much} a new conversation, shorten the prompt, or ask for fewer new tokens."


def _error_body(response: httpx.Response) -> dict[str, Any]:
    """`{"error": {…}}`, or an empty dictionary if the body is anything else."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) and isinstance(body.get("error"), dict) else {}


def _message(body: dict[str, Any]) -> str:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _sentence(message: str) -> str:
    """The server's message, ending as a sentence does."""
    message = " ".join(message.split()) or "it gave no reason"
    return message if message[-1] in ".!?…" else f"{message}."


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or an HTTP date."""
    value = response.headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
