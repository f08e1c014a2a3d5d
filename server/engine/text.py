"""From decoded text to text that may be shown: cuts at stop strings, and never shows a part of one.

It knows nothing of tokens; the decoder it is given does.
"""

from __future__ import annotations

from server.types import TextDecoder


class TextStream:
    """Holds back the longest end of the text that could still become a stop string."""

    def __init__(self, decoder: TextDecoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """The text this token lets through. Sets is_stopped when a stop string is complete."""
        if self.is_stopped:
            return ""
        return self._release(self._decoder.push(token_id), at_end=False)

    def flush(self) -> str:
        """What is left at the end of the answer: held text that did not become a stop string."""
        if self.is_stopped:
            return ""
        return self._release(self._decoder.flush(), at_end=True)

    def _release(self, text: str, *, at_end: bool) -> str:
        text = self._held + text
        self._held = ""
        # The stop string that is complete first wins: so the result does not depend on how the text was cut.
        found = min(
            ((at + len(s), at) for s in self._stop if (at := text.find(s)) >= 0), default=None
        )
        if found is not None:
            self.is_stopped = True
            return text[: found[1]]
        if at_end:
            return text
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        if keep:
            self._held = text[-keep:]
            return text[:-keep]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of text that is a proper beginning of stop."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
