"""What a token stands for in a text, as bytes: a token may be a part of a character."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes_of(tokenizer_json: str) -> list[bytes]:
    """The bytes of every token id; gaps in the ids are empty. Control tokens give their name.

    tokenizer_json: the whole tokenizer in the form of tokenizer.json.
    """
    tokenizer: dict[str, Any] = json.loads(tokenizer_json)
    vocab = tokenizer["model"]["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((t[0], i) for i, t in enumerate(vocab))
    words = {int(i): str(token) for token, i in pairs}
    added = {int(t["id"]): str(t["content"]) for t in tokenizer.get("added_tokens", ())}
    spell = _byte_level if "ByteLevel" in _decoders(tokenizer.get("decoder")) else _byte_fallback
    table = [b""] * (max((*words, *added), default=-1) + 1)
    for i, word in words.items():
        table[i] = spell(word)
    for i, content in added.items():
        table[i] = content.encode()
    return table


def _decoders(decoder: Any) -> set[str]:
    if not isinstance(decoder, dict):
        return set()
    names = {str(decoder.get("type"))}
    for part in decoder.get("decoders", ()):
        names |= _decoders(part)
    return names


def _byte_level(word: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes(alphabet[character] for character in word)
    except KeyError:  # a word that was put in beside the alphabet
        return word.encode()


def _byte_fallback(word: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(word)
    return bytes([int(byte[1], 16)]) if byte else word.replace("▁", " ").encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: each byte as a character that can be seen."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = (byte for byte in range(256) if byte not in set(seen))
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(unseen)}
