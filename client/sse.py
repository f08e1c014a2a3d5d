"""Server-sent events: bytes in, the data of whole events out. Knows not what the data means."""

import re

# The only line ends of the format. str.splitlines (and httpx's aiter_lines) also break at U+2028,
# U+0085 and others, which are legal inside a JSON string, and would cut an event in two.
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Joins chunks of any size, cut anywhere, into events.

    Lines are decoded only when whole, so a chunk may end inside a character. Comments (lines that
    begin with a colon, sent to keep the connection alive) and fields other than `data` are skipped.
    """

    def __init__(self) -> None:
        self._pending = b""
        self._after_carriage_return = False
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """Take the next bytes; give the data of each event they complete.

        Raises UnicodeDecodeError if a line is not UTF-8.
        """
        if not chunk:
            return []
        ends_in_carriage_return = chunk.endswith(b"\r")
        if self._after_carriage_return:
            chunk = chunk.removeprefix(
                b"\n"
            )  # the second half of "\r\n"; the line has ended already
        self._after_carriage_return = ends_in_carriage_return
        *lines, self._pending = _LINE_END.split(self._pending + chunk)
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                    self._data.clear()
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode())
        return events
