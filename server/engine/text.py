"""From decoded text to text that may be shown: cuts at stop strings, and never shows a part of one.

It knows nothing of tokens; the decoder it is given does.
"""

from __future__ import annotations

from server.types import TextDecoder


class TextStream:
    """Holds back the longest end of the text that could still become a stop string.

    include_stop: show the stop string that ended the text, too.
    """

    def __init__(
        self, decoder: TextDecoder, stop: tuple[str, ...] = (), *, include_stop: bool = False
    ) -> None:
        self._decoder = decoder
        self._stop = stop
        self._include_stop = include_stop
        self._held = ""
        self.stopped_by: str | None = None

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, token_id: int, *, may_stop: bool = True) -> str:
        """The text this token lets through. Sets stopped_by when a stop string is complete.

        may_stop: False where the answer must go on: a stop string that this token completes is text like any other.
        """
        if self.is_stopped:
            return ""
        return self._release(self._decoder.push(token_id), may_stop=may_stop, at_end=False)

    def flush(self, *, may_stop: bool = True) -> str:
        """What is left at the end of the answer: held text that did not become a stop string."""
        if self.is_stopped:
            return ""
        return self._release(self._decoder.flush(), may_stop=may_stop, at_end=True)

    def _release(self, text: str, *, may_stop: bool, at_end: bool) -> str:
        if not self._stop:
            return text
        held = len(self._held)
        text = self._held + text
        self._held = ""
        # The stop string that is complete first wins: so the result does not depend on how the text was cut. One that
        # was complete in what is held came too early, and is none.
        found = min(
            (
                (at + len(s), at)
                for s in self._stop
                if (at := text.find(s, max(0, held - len(s) + 1))) >= 0
            ),
            default=None,
        )
        if found is not None and may_stop:
            end, start = found
            self.stopped_by = text[start:end]
            return text[: end if self._include_stop else start]
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
