"""Reads the lines of a chat in a terminal, or from a pipe, until they end.

At a terminal Ctrl-C ends the answer being written, and Ctrl-D or /exit the program. With input from
a pipe each line is a question.
"""

import asyncio
import os
import sys

from rich.console import Console
from rich.text import Text

from client.api import ChatClient
from client.terminal import Leave, Session, Terminal
from client.terminal_files import remembered_lines


def run(server: str, api_key: str | None, session: Session) -> int:
    """Chat until the input ends; 1 if a line from a pipe could not be answered, else 0."""
    is_interactive = sys.stdin.isatty() and sys.stdout.isatty()
    client = ChatClient(server, api_key)
    terminal = Terminal(client, session, is_interactive)
    # The runner turns Ctrl-C into a cancellation of what it runs, and can run again after it.
    with asyncio.Runner() as runner:
        try:
            if is_interactive:
                _chat(runner, terminal)
                return 0
            return _answer_lines(runner, terminal)
        finally:
            runner.run(client.aclose())


def _chat(runner: asyncio.Runner, terminal: Terminal) -> None:
    out = Console(highlight=False)
    try:
        runner.run(terminal.greet())
    except KeyboardInterrupt:
        return
    with remembered_lines():
        while True:
            try:
                line = input("> ")
            except EOFError:
                out.print()
                return
            except KeyboardInterrupt:
                out.print(Text("\nCtrl-D or /exit leaves", style="dim"))
                continue
            try:
                runner.run(terminal.handle(line))
            except KeyboardInterrupt:
                out.print(Text("stopped", style="dim"))
            except Leave:
                return


def _answer_lines(runner: asyncio.Runner, terminal: Terminal) -> int:
    try:
        for line in sys.stdin:
            runner.run(terminal.handle(line))
    except Leave:
        pass
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 1 if terminal.has_failed else 0
