"""Asks a running server for answers, and tells what of its failures is worth another try."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

from trainer.conversation import Message
from trainer.errors import ConfigError, RetryableError

SERVER_SECONDS = 600.0  # for one answer: a 3B model on a small CPU is slow

BUSY = frozenset({429, 500, 502, 503, 504})  # statuses of a server that may answer the next time

# (messages, whether of the tuned model) -> (answer, whether it ended by itself)
Answerer = Callable[[Sequence[Message], bool], tuple[str, bool]]


def served(server: str, tuned: str, reference: str, most: int) -> Answerer:
    """Answers of at most `most` tokens from the models that the server calls `tuned` and `reference`.

    Raises ConfigError for an address that is none; the answerer raises it for a refusal and for what is no such
    server, and RetryableError for a server that is away or busy.
    """
    if not server.startswith(("http://", "https://")):
        raise ConfigError(f"--server {server} is no address: write it as http://HOST:PORT.")

    def ask(messages: Sequence[Message], is_tuned: bool) -> tuple[str, bool]:
        body = {
            "model": tuned if is_tuned else reference,
            "messages": list(messages),
            "temperature": 0,
            "max_tokens": most,
        }
        request = urllib.request.Request(
            f"{server.rstrip('/')}/v1/chat/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"} | _authorization(),
        )
        try:
            with urllib.request.urlopen(request, timeout=SERVER_SECONDS) as response:
                choice = json.load(response)["choices"][0]
                return choice["message"]["content"], choice["finish_reason"] == "stop"
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:300]
            if error.code in BUSY:
                raise RetryableError(f"{server} is busy ({error.code}): {detail}") from error
            raise ConfigError(f"{server} refused to answer as {body['model']}: {detail}") from error
        except OSError as error:
            raise RetryableError(
                f"{server} does not answer: {error}; is the server running?"
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"What answers at {server} is no server of chat completions; give --server its address without a path."
            ) from error

    return ask


def _authorization() -> dict[str, str]:
    key = os.environ.get("LORACHAT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
