"""What two answers do not share, word by word, as HTML."""

import re
from difflib import SequenceMatcher
from html import escape

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
# Comparing takes time with the square of the length.
_MOST_WORDS = 6000


def differences(left: str, right: str) -> tuple[str, str, float]:
    """Both texts with their own words marked, and the share of words that are common, 0 to 1.

    Raises ValueError if they are too long to be compared in a second or two.
    """
    words: list[list[str]] = [_WORD.findall(text) for text in (left, right)]
    if max(map(len, words)) > _MOST_WORDS:
        raise ValueError("These answers are too long to be compared word by word.")
    matcher = SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, i1, i2, j1, j2 in matcher.get_opcodes():
        for side, text, tag in (
            (0, "".join(words[0][i1:i2]), "del"),
            (1, "".join(words[1][j1:j2]), "ins"),
        ):
            if text:
                html = escape(text)
                marked[side].append(html if kind == "equal" else f"<{tag}>{html}</{tag}>")
    return "".join(marked[0]), "".join(marked[1]), matcher.ratio()
