"""What llguidance says of a grammar that it refuses -> a sentence about the caller's schema.

Its own message lists lines of the grammar, which the caller never wrote and which repeat all of the schema.
"""

from __future__ import annotations

import re

MAX_REASON = 400  # characters: names in a schema may be of any length

_PLACE = re.compile(r"^at (\d+)\(\d+\): (?:failed to compile JSON schema: )?")
_LISTING = re.compile(r"^ *(\d+) \| (.*)$", re.MULTILINE)
# As the frame of a call begins, in a literal of the grammar.
_FUNCTION = re.compile(r'\\"name\\": \\"([a-zA-Z0-9_-]{1,64})\\"')
_WORDS = {"NoExtensionBias": "no text satisfies it"}


def reason_of(said: str) -> str:
    """Why the schema is refused, and of which function it is where it is a function's."""
    place, listed = _PLACE.match(said), _LISTING.search(said)
    sentence = said if listed is None else said[: listed.start()]
    sentence = _PLACE.sub("", sentence).replace("<non-verbose/>", "").strip()
    sentence = _WORDS.get(sentence, sentence)[:MAX_REASON]
    line = dict(_LISTING.findall(said)).get(place[1], "") if place is not None else ""
    function = _FUNCTION.search(line)
    return sentence if function is None else f"function '{function[1]}': {sentence}"
