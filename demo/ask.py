"""Asks two models of a running server the same questions at once and shows the answers side by side as they stream.

It knows the server by HTTP only.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.errors import DemoError

QUESTIONS = (
    "My computer won't start",
    "I can't hear any sound.",
    "My printer is not printing.",
    "Who are you?",
)
MAX_TOKENS = 96


@dataclass(slots=True)
class Column:
    """One model's answer so far."""

    model: str
    text: str = ""
    finish: str = ""


async def ask_both(
    server: str, models: Sequence[str], console: Console, questions: Sequence[str] = QUESTIONS
) -> list[list[str]]:
    """Print every question with the models' answers; return the answers, by question.

    LORACHAT_API_KEY is sent where it is set.
    Raises DemoError if the server cannot be reached or refuses.
    """
    answers = []
    key = os.environ.get("LORACHAT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(600, connect=10)
    async with httpx.AsyncClient(base_url=server, timeout=timeout, headers=headers) as http:
        for question in questions:
            columns = [Column(model) for model in models]
            # On a terminal the table is redrawn as tokens arrive; into a file it is written once.
            with Live(console=console, refresh_per_second=12, transient=True) as live:
                tasks = [asyncio.create_task(_stream(http, question, c)) for c in columns]
                try:
                    while not all(task.done() for task in tasks):
                        await asyncio.wait(tasks, timeout=0.08)
                        if console.is_terminal:
                            live.update(_table(question, columns))
                    await asyncio.gather(*tasks)
                except httpx.HTTPError as error:
                    raise DemoError(f"The server at {server} does not answer: {error}") from None
                finally:
                    for task in tasks:
                        task.cancel()
            console.print(_table(question, columns))
            answers.append([column.text for column in columns])
    return answers


async def _stream(http: httpx.AsyncClient, question: str, column: Column) -> None:
    body = {
        "model": column.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }
    async with http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            text = (await response.aread()).decode(errors="replace")
            raise DemoError(f"The server refused model '{column.model}': {text}")
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data in (line, "[DONE]"):
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise DemoError(f"The server failed: {chunk['error']['message']}")
            for choice in chunk["choices"]:
                column.text += choice["delta"].get("content") or ""
                column.finish = choice["finish_reason"] or column.finish


def _table(question: str, columns: Sequence[Column]) -> Table:
    table = Table(title=f"“{question}”", title_justify="left", expand=True, show_lines=False)
    for column in columns:
        table.add_column(column.model, ratio=1, overflow="fold")
    table.add_row(
        *(
            Text(
                column.text.strip()
                + (" … (cut at the token limit)" if column.finish == "length" else "")
            )
            for column in columns
        )
    )
    return table
