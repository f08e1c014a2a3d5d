"""One question, one answer, for scripts: text or JSON on standard output, and an exit code that tells why not."""

import asyncio
import json
import os
import sys
from contextlib import aclosing
from dataclasses import asdict

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.exit_codes import FAILED, INTERRUPTED, exit_code
from client.printable import printable
from client.types import ChatRequest, Delta, Done, Message, Sampling, default_model


def run(
    server: str,
    api_key: str | None,
    question: str,
    *,
    model: str | None,
    system: str,
    sampling: Sampling,
    as_json: bool,
) -> int:
    """Ask and print; the exit code. Text is written as it comes, JSON once the answer is whole."""
    messages = (Message("system", system),) if system else ()
    try:
        return asyncio.run(
            _ask(server, api_key, (*messages, Message("user", question)), model, sampling, as_json)
        )
    except ChatError as error:
        sys.stderr.write(f"{error}\n")
        return exit_code(error.kind)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has enough, as `head` does
        # Flushed once more at the end, it would complain then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


async def _ask(
    server: str,
    api_key: str | None,
    messages: tuple[Message, ...],
    model: str | None,
    sampling: Sampling,
    as_json: bool,
) -> int:
    text = ""
    # A program gets the text as it is; on a terminal it must not act.
    show = printable if sys.stdout.isatty() else str
    async with ChatClient(server, api_key) as client:
        model = model or default_model(await client.models())
        if model is None:
            raise ChatError(
                ErrorKind.UNKNOWN_MODEL, "The server has no model.", "Start it with one."
            )
        async with aclosing(client.stream(ChatRequest(model, messages, sampling))) as events:
            try:
                async for event in events:
                    match event:
                        case Delta():
                            text += event.text
                            if not as_json:
                                sys.stdout.write(show(event.text))
                                sys.stdout.flush()
                        case Done() if as_json:
                            _print_json(event, text)
            finally:
                if text and not as_json and not text.endswith("\n"):
                    sys.stdout.write("\n")
    return 0


def _print_json(done: Done, text: str) -> None:
    """The answer as one line: who gave it, its text, why it ended, tokens and times."""
    body = {
        "model": done.model,
        "content": text,
        "finish_reason": done.finish_reason,
        "usage": asdict(done.usage) if done.usage else None,
        "timings": asdict(done.timings),
    }
    sys.stdout.write(json.dumps(body, ensure_ascii=False) + "\n")
