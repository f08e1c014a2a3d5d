"""Which part of a Markdown text that is still being written can be shown for good."""

import re

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def complete_blocks(text: str) -> int:
    """Length of the part of `text` that no further text can change the look of.

    That is up to the last blank line outside of code that is followed by an unindented line:
    an indented one would still belong to a list item above.
    """
    end = position = 0
    fence = ""
    is_after_blank = False
    for line in text.splitlines(keepends=True):
        if is_after_blank and not fence and not line[0].isspace():
            end = position
        if match := _FENCE.match(line):
            marker = match[1]
            if not fence:
                fence = marker
            elif marker.startswith(fence) and not line[match.end() :].strip():
                fence = ""
        is_after_blank = not line.strip()
        position += len(line)
    return end
