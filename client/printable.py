"""Text of a model that is safe on a terminal."""

import re

# Everything that moves the cursor, sets colours or titles: an answer may contain it, and must not act.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text without control characters, save line feeds and tabs."""
    return _CONTROL.sub("", text)
