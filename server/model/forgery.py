"""Keeps the words of control tokens, where callers write them, from becoming control tokens.

Only the chat template writes control tokens. Before rendering, each forged one becomes a character that no text of
the conversation holds; after rendering, its words are tokenised in two pieces, which are not one token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Added tokens that are not marked special control a conversation too, if they look like markup: <tool_call>, [INST].
_MARKUP = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")


def control_tokens(added: Mapping[str, bool]) -> list[str]:
    """The tokens that only templates may write, longest first: one may begin with another.

    added: the tokenizer's added tokens, and whether each is marked special.
    """
    tokens = {text for text, special in added.items() if special or _MARKUP.fullmatch(text)}
    return sorted(tokens, key=lambda token: (-len(token), token))


class Disguise:
    """The forged control tokens of one conversation and the characters that stand for them."""

    def __init__(self, tokens: Sequence[str], conversation: Any) -> None:
        text = "\0".join(_strings(conversation))
        forged = [token for token in tokens if token in text]
        unused = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in text)
        self._tokens = {next(unused): token for token in forged}

    def hide(self, value: Any) -> Any:
        """A copy of a JSON-like value with every forged token replaced, keys of objects included."""
        if not self._tokens:
            return value
        if isinstance(value, str):
            for stand_in, token in self._tokens.items():
                value = value.replace(token, stand_in)
            return value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(entry) for entry in value]
        return value

    def show(self, rendered: str) -> str:
        """The rendered text with the callers' own words in their places."""
        for stand_in, token in self._tokens.items():
            rendered = rendered.replace(stand_in, token)
        return rendered

    def encode(self, rendered: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Token ids of a rendered text in which forged tokens are hidden."""
        if not self._tokens:
            return encode(rendered)
        ids: list[int] = []
        for part in re.split(f"([{''.join(self._tokens)}])", rendered):
            token = self._tokens.get(part)
            # In two pieces the words of a control token are not one. (The tokenizer's own switch for that is shared
            # by all threads.)
            ids += encode(part) if token is None else encode(token[0]) + encode(token[1:])
        return ids


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)
