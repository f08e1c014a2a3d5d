"""Finds function calls in an answer while it is being written. Nothing is lost: what is no call is text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection

from server.tools.brackets import Brackets
from server.tools.calls import (
    CallArguments,
    CallStart,
    Piece,
    Text,
    calls_in_json,
    calls_in_python,
    new_call_id,
)
from server.tools.formats import END_TAG, TAG, ToolFormat

_HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
# Names have at most 64 characters. What is longer is looked at once, when it is whole: no answer can make its parser
# go over it again at every token.
_MAX_HEADER = 1024


class CallParser:
    """One choice's parser. names: of the functions that may be called; a call of another is text.

    How a text is cut into pushes makes no difference to what comes out, joined.
    """

    def __init__(self, format_: ToolFormat, names: Collection[str]) -> None:
        self._tagged = format_ is ToolFormat.HERMES
        self._names = names
        self._buffer = ""
        self._blank = ""  # white space that is text only if text follows it
        self._brackets = Brackets()
        self._scanned = 0  # characters of the buffer that self._brackets has seen
        self._tail: list[str] = []
        self._state: Callable[[], list[Piece] | None] = (
            self._in_text if self._tagged else self._at_start
        )
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while (found := self._state()) is not None:
            pieces += found
        return pieces

    def finish(self) -> list[Piece]:
        """What is left at the end of the answer."""
        rest, self._buffer = self._buffer, ""
        if self._state == self._in_arguments:
            self._state = self._ended
            return self._arguments(rest)
        if self._state in (self._in_header, self._in_brackets):
            calls = self._whole_calls(rest)
            if calls is not None:
                return calls
            rest = (TAG if self._tagged else "") + rest
        elif self._state == self._in_tail:
            rest = ""
        self._state = self._ended
        if not rest.strip() and self.num_calls:
            return []
        return self._text(rest)

    # Each state returns what it found and changes the state, or None while it needs more text.

    def _at_start(self) -> list[Piece] | None:
        begun = self._buffer.lstrip()
        if not begun:
            return None
        if begun[0] == "{":
            self._enter(self._in_header)
        elif begun[0] == "[":
            self._enter(self._in_brackets)
        else:
            self._state = self._in_text
        return []

    def _in_text(self) -> list[Piece] | None:
        if not self._buffer:
            return None
        if not self._tagged:
            text, self._buffer = self._buffer, ""
            return self._text(text)
        at = self._buffer.find(TAG)
        if at >= 0:
            text, self._buffer = self._buffer[:at], self._buffer[at + len(TAG) :]
            self._enter(self._in_header)
            return self._text(text)
        held = _overlap(self._buffer, TAG)
        cut = len(self._buffer) - held
        if cut == 0:
            return None
        text, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return self._text(text)

    def _enter(self, state: Callable[[], list[Piece] | None]) -> None:
        """Go to a state that waits for a whole call; what is in the buffer is its beginning."""
        self._brackets = Brackets(quotes="\"'")
        self._scanned = 0
        self._state = state

    def _in_header(self) -> list[Piece] | None:
        seen = self._scanned
        header = _HEADER.match(self._buffer, 0, _MAX_HEADER) if seen < _MAX_HEADER else None
        if header is not None:
            name = _loads(header[1])
            if name in self._names:
                self._buffer = self._buffer[header.end() :]
                self._brackets = Brackets()
                self._state = self._in_arguments
                return self._start(str(name))
            return self._no_call()
        if self._tagged:
            at = self._buffer.find(END_TAG, max(seen - len(END_TAG), 0))
            self._scanned = len(self._buffer)
            if at < 0:
                return None
            calls = self._whole_calls(self._buffer[:at])
            if calls is None:
                return self._no_call()
            self._buffer = self._buffer[at + len(END_TAG) :]
            self._state = self._in_text
            return calls
        return self._in_brackets()

    def _in_brackets(self) -> list[Piece] | None:
        """A call in another order of its parts, a list of calls, or pythonic calls: known when it is whole."""
        seen, self._scanned = self._scanned, len(self._buffer)
        end = self._brackets.end_of(self._buffer[seen:])
        if end is None:
            return None
        end += seen
        calls = self._whole_calls(self._buffer[:end])
        if calls is None:
            return self._no_call()
        self._buffer = self._buffer[end:]
        self._tail, self._state = [";"], self._in_tail
        return calls

    def _in_arguments(self) -> list[Piece] | None:
        if not self._buffer:
            return None
        end = self._brackets.end_of(self._buffer)
        text, self._buffer = self._buffer[:end], "" if end is None else self._buffer[end:]
        if end is not None:
            self._tail = ["}", END_TAG if self._tagged else ";"]
            self._state = self._in_tail
        return self._arguments(text)

    def _in_tail(self) -> list[Piece] | None:
        """After a call: what closes it, where the model wrote that."""
        while self._tail:
            self._buffer = self._buffer.lstrip()
            expected = self._tail[0]
            if len(self._buffer) < len(expected) and expected.startswith(self._buffer):
                return None
            if self._buffer.startswith(expected):
                self._buffer = self._buffer[len(expected) :]
            self._tail.pop(0)
        self._state = self._in_text if self._tagged else self._at_start
        return []

    def _ended(self) -> None:
        return None

    def _no_call(self) -> list[Piece]:
        """What began like a call is text, and so is (without tags) the rest of the answer."""
        if self._tagged:
            self._state = self._in_text
            return self._text(TAG)
        self._state = self._in_text
        return []

    def _whole_calls(self, text: str) -> list[Piece] | None:
        calls = calls_in_json(text, self._names)
        if calls is None and not self._tagged:
            calls = calls_in_python(text, self._names)
        if calls is None:
            return None
        pieces: list[Piece] = []
        for name, arguments in calls:
            pieces += self._start(name)
            pieces += self._arguments(arguments)
        return pieces

    def _start(self, name: str) -> list[Piece]:
        self._blank = ""
        self.num_calls += 1
        return [CallStart(self.num_calls - 1, new_call_id(), name)]

    def _arguments(self, text: str) -> list[Piece]:
        return [CallArguments(self.num_calls - 1, text)] if text else []

    def _text(self, text: str) -> list[Piece]:
        text = self._blank + text
        shown = text.rstrip() if self._state != self._ended else text
        self._blank = text[len(shown) :]
        return [Text(shown)] if shown else []


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of text that is a proper beginning of tag."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0
