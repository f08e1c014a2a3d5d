"""Chat in a terminal: streams answers, obeys slash commands.

With input from a pipe only answers go to standard output. Where the lines come from is not known here.
"""

import sys
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.text import Text

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.figures import figures
from client.printable import printable
from client.sampling import change, show
from client.terminal_compare import show_side_by_side
from client.terminal_files import as_text
from client.terminal_markdown import MarkdownStream
from client.types import ChatRequest, Delta, Done, Message, Sampling, default_model

HELP = """\
/model [NAME]      list the models, or ask NAME from now on
/system [TEXT]     show the system prompt, or set it (/system - removes it)
/set [NAME VALUE]  show the settings, or set one: temperature, top_p, max_tokens, top_k, min_p,
                   repetition_penalty, seed, stop
/compare MODEL [QUESTION]
                   ask another model too (default: the last question), side by side
/retry             answer the last question once more
/undo              take back the last question and its answer
/save [FILE]       write the conversation to a file: Markdown, or JSON if it ends in .json
/new               forget the conversation
/exit              leave (also Ctrl-D); Ctrl-C stops an answer"""


@dataclass(slots=True)
class Session:
    """What the next question goes with. `model` None means the server's first adapter, or base."""

    model: str | None = None
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    messages: list[Message] = field(default_factory=list)


class Leave(Exception):
    """The person wants to leave."""


class Terminal:
    """One conversation. `is_interactive` decides between a chat and plain answers."""

    def __init__(self, client: ChatClient, session: Session, is_interactive: bool) -> None:
        self._client = client
        self._session = session
        self._is_interactive = is_interactive
        self._out = Console(highlight=False)
        self._errors = self._out if is_interactive else Console(stderr=True, highlight=False)
        self.has_failed = False

    async def greet(self) -> None:
        """Say who will answer, or why nobody can."""
        try:
            model = await self._model()
        except ChatError as error:
            self._show_error(error)
        else:
            self._say(f"{model} at {self._client.server}; /help lists the commands")

    async def handle(self, line: str) -> None:
        """Obey a command or answer a question. Raises Leave; shows errors instead of raising."""
        # What is no text (from a pipe in another encoding) could not be sent.
        line = line.encode(errors="replace").decode().strip()
        try:
            if line.startswith("/"):
                await self._command(line)
            elif line:
                self._session.messages.append(Message("user", line))
                await self._answer()
        except ChatError as error:
            self._show_error(error)

    async def _command(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/exit" | "/quit":
                raise Leave
            case "/help":
                self._say(HELP)
            case "/model":
                await self._pick_model(rest)
            case "/system":
                if rest:
                    self._session.system = "" if rest == "-" else rest
                self._say(f"system prompt: {self._session.system or 'none'}")
            case "/set":
                self._set(rest)
            case "/compare":
                await self._compare(rest)
            case "/retry":
                await self._retry()
            case "/undo":
                self._undo()
            case "/save":
                self._save(rest)
            case "/new":
                self._session.messages.clear()
                self._say("a new conversation")
            case _:
                self._complain(f"There is no command {name}; /help lists them.")

    async def _answer(self) -> None:
        """Answer the last message; what was said before a failure or a stop stays."""
        session = self._session
        text = ""
        done: Done | None = None
        try:
            model = await self._model()
            request = ChatRequest(model, (*self._system(), *session.messages), session.sampling)
            async with aclosing(self._client.stream(request)) as events:
                with self._writer(model) as show:
                    async for event in events:
                        match event:
                            case Delta():
                                text += event.text
                                show.feed(event.text)
                            case Done():
                                done = event
        finally:
            if text:
                session.messages.append(Message("assistant", text))
            else:
                session.messages.pop()  # a question without any answer
        if done is not None:
            self._say(" · ".join([done.model, *figures(done)]))

    def _writer(self, model: str) -> "MarkdownStream | PlainStream":
        return MarkdownStream(self._out, model) if self._is_interactive else PlainStream()

    async def _retry(self) -> None:
        messages = self._session.messages
        if len(messages) < 2:
            self._complain("There is no answer yet that could be tried again.")
            return
        messages.pop()
        await self._answer()

    async def _model(self) -> str:
        """The model to ask; the server's list decides where none is picked."""
        if self._session.model is None:
            self._session.model = default_model(await self._client.models())
        if self._session.model is None:
            raise ChatError(
                ErrorKind.UNKNOWN_MODEL, "The server has no model.", "Start it with one."
            )
        return self._session.model

    async def _pick_model(self, name: str) -> None:
        models = await self._client.models()
        if not name:
            current = self._session.model or default_model(models)
            for model in models:
                self._say(f"{'*' if model.id == current else ' '} {model.label}")
        elif any(model.id == name for model in models):
            self._session.model = name
            self._say(f"{name} answers from now on")
        else:
            self._complain(f"The server has no model named “{name}”; /model lists them.")

    async def _compare(self, rest: str) -> None:
        """The question to the picked model and another; the conversation stays as it is."""
        name, _, question = rest.partition(" ")
        asked = self._messages_for(question.strip())
        if not name or not asked:
            self._complain("Say with which model and, before any question, what: /compare base Hi")
            return
        requests = [
            ChatRequest(model, asked, self._session.sampling)
            for model in (await self._model(), name)
        ]
        await show_side_by_side(self._out, self._client, requests)

    def _messages_for(self, question: str) -> tuple[Message, ...]:
        """What a comparison asks: the conversation up to its last question, or this one after it."""
        messages = list(self._session.messages)
        if question:
            messages.append(Message("user", question))
        else:
            while messages and messages[-1].role != "user":
                messages.pop()
        return (*self._system(), *messages) if messages else ()

    def _system(self) -> tuple[Message, ...]:
        return (Message("system", self._session.system),) if self._session.system else ()

    def _undo(self) -> None:
        messages = self._session.messages
        if not messages:
            self._complain("There is no question yet that could be taken back.")
            return
        while messages.pop().role != "user":
            pass
        self._say("taken back")

    def _save(self, rest: str) -> None:
        if not self._session.messages:
            self._complain("There is no conversation yet that could be saved.")
            return
        path = Path(rest or f"chat-{datetime.now():%Y%m%d-%H%M%S}.md").expanduser()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(as_text(path, [*self._system(), *self._session.messages]))
        except FileExistsError:
            self._complain(f"{path} exists already; name another file.")
        except OSError as error:
            self._complain(f"{path} cannot be written: {error.strerror}; name another file.")
        else:
            self._say(f"saved to {path}")

    def _set(self, rest: str) -> None:
        if rest:
            name, _, value = rest.replace("=", " ", 1).partition(" ")
            try:
                self._session.sampling = change(self._session.sampling, name, value.strip())
            except ValueError as error:
                self._complain(str(error))
                return
        self._say(show(self._session.sampling))

    def _say(self, text: str) -> None:
        """A remark of the program, not of the model; pipes get none."""
        if self._is_interactive:
            self._out.print(Text(printable(text), style="dim"))

    def _complain(self, sentence: str) -> None:
        self.has_failed = True
        self._errors.print(Text(printable(sentence), style="red"), soft_wrap=True)

    def _show_error(self, error: ChatError) -> None:
        self._complain(str(error))


class PlainStream:
    """Writes an answer to standard output as it comes, and ends it with a line feed."""

    def __init__(self) -> None:
        self._has_written = False

    def __enter__(self) -> "PlainStream":
        return self

    def __exit__(self, *_: object) -> None:
        if self._has_written:
            self.feed("\n")

    def feed(self, text: str) -> None:
        self._has_written = True
        sys.stdout.write(printable(text))
        sys.stdout.flush()
