"""Finds where a bracketed text ends, though brackets stand in its strings too; over any number of pieces."""

from __future__ import annotations

import re

_OPEN, _CLOSE = "{[(", "}])"


class Brackets:
    """State of one bracketed text: its depth, and whether a string is open."""

    def __init__(self, quotes: str = '"') -> None:
        self._depth = 0
        self._quote = ""
        self._escaped = False
        self._marks = re.compile(f"[{re.escape(_OPEN + _CLOSE + quotes)}]")
        self._quotes = quotes

    def end_of(self, text: str) -> int | None:
        """The position behind the bracket that closes the first one, if it is in this next piece of text."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
            elif self._quote:
                at = self._through_string(text, at)
            else:
                mark = self._marks.search(text, at)
                if mark is None:
                    return None
                at = mark.end()
                if mark[0] in self._quotes:
                    self._quote = mark[0]
                elif mark[0] in _OPEN:
                    self._depth += 1
                else:
                    self._depth -= 1
                    if self._depth <= 0:
                        return at
        return None

    def _through_string(self, text: str, at: int) -> int:
        while at < len(text):
            if text[at] == "\\":
                self._escaped = True
                return at + 1
            if text[at] == self._quote:
                self._quote = ""
                return at + 1
            at += 1
        return at
