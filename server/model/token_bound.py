"""How few tokens a text can have, told from its length alone: what must be too long is refused before it is tokenised.

Only for tokenizers of which it is certain that no token stands for more of a text than its own bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.model.token_bytes import byte_alphabet

# A character has at most so many bytes in UTF-8.
CHARACTER_BYTES = 4
# A normalizer makes a text at most so many times as long: NFC in UTF-8 (Unicode FAQ), ▁ for a blank.
_GROWTH = 3
_NOT_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}
_KEEPING_SPLITS = {"ByteLevel", "Digits", "Metaspace"}


@dataclass(frozen=True, slots=True)
class TokenBound:
    """longest: bytes of a text that one token can stand for; 0 if nothing is certain.

    ascii_only: a normalizer may shorten other characters, so only these count. absent: bytes that have no token.
    """

    longest: int
    ascii_only: bool = False
    absent: bytes = b""

    def least_tokens(self, text: str) -> int:
        """The text has so many tokens or more."""
        if not self.longest:
            return 0
        counted = text.encode("ascii" if self.ascii_only else "utf-8", "ignore")
        return -(-len(counted.translate(None, self.absent)) // self.longest)


UNKNOWN = TokenBound(0)


def token_bound(tokenizer_json: str) -> TokenBound:
    """tokenizer_json: the whole tokenizer in the form of tokenizer.json."""
    tokenizer: dict[str, Any] = json.loads(tokenizer_json)
    model, added = tokenizer["model"], tokenizer.get("added_tokens") or ()
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    splits = list(_parts(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    composes = [part["type"] for part in normalizers] == ["NFC"]
    if not composes and not all(_lengthens(part) for part in normalizers):
        return UNKNOWN
    if not all(_keeps(part) for part in splits):
        return UNKNOWN
    # Such a token takes all the blanks beside it.
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return UNKNOWN
    if model.get("type") != "BPE" or any(
        model.get(affix) for affix in ("continuing_subword_prefix", "end_of_word_suffix")
    ):
        return UNKNOWN
    vocab = model["vocab"]
    of_bytes = any(part["type"] == "ByteLevel" for part in (*splits, *normalizers))
    alphabet = byte_alphabet() if of_bytes else {f"<0x{byte:02X}>": byte for byte in range(256)}
    # What has no token is left out, or many characters become one unknown token.
    absent = {byte for word, byte in alphabet.items() if word not in vocab} - _NOT_UTF8
    if not of_bytes and (absent or not model.get("byte_fallback")):
        return UNKNOWN
    # A counted character must not become one that has no token.
    if absent and (not composes or max(absent) > 0x7F) and (normalizers or _writes_blanks(splits)):
        return UNKNOWN
    # A character of the alphabet stands for a byte. Elsewhere "▁" stands for a blank, and for itself: its bytes count.
    words = [len(word if of_bytes else word.encode()) for word in vocab]
    names = [len(str(token["content"]).encode()) for token in added]
    if normalizers:
        names = [_GROWTH * (name + 1) for name in names]
    return TokenBound(max(CHARACTER_BYTES, *words, *names), composes, bytes(sorted(absent)))


def _parts(node: Any, key: str) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    if node.get("type") != "Sequence":
        yield node
    for part in node.get(key, ()):
        yield from _parts(part, key)


def _lengthens(normalizer: dict[str, Any]) -> bool:
    """Whether no text has fewer bytes after it."""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in ("Prepend", "ByteLevel")
    replaced = normalizer["pattern"].get("String")
    return replaced is not None and len(replaced.encode()) <= len(normalizer["content"].encode())


def _writes_blanks(splits: list[dict[str, Any]]) -> bool:
    return any(split["type"] == "Metaspace" for split in splits)


def _keeps(split: dict[str, Any]) -> bool:
    """Whether all of a text is in the pieces."""
    if split["type"] == "Split":
        return bool(split["behavior"] != "Removed")
    return split["type"] in _KEEPING_SPLITS
