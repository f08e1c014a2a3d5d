"""The tokenizers of adapter versions, shared by all that bring the same one: a vocabulary takes memory."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerFast

from server.errors import AdapterError

# The second holds the special tokens, which templates write by name.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
MAX_BYTES = 256 * 2**20  # Llama 3's, with 128,000 tokens, has 17 MB


class Tokenizers:
    """Kept by the digests of their files, for as long as a version uses them. vocab_size: the base's embeddings."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._kept: WeakValueDictionary[tuple[str, ...], PreTrainedTokenizerFast] = (
            WeakValueDictionary()
        )

    def get(self, folder: Path, digests: tuple[str, ...]) -> PreTrainedTokenizerFast:
        """digests: of TOKENIZER_FILES in the folder. Raises AdapterError."""
        tokenizer = self._kept.get(digests)
        if tokenizer is not None:
            return tokenizer
        for name in TOKENIZER_FILES:
            if (folder / name).stat().st_size > MAX_BYTES:
                raise AdapterError(f"{name} has over {MAX_BYTES} bytes", "size")
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # whatever the broken part happens to break
            raise AdapterError(f"its tokenizer cannot be read ({error!r})") from None
        if max(tokenizer.get_vocab().values()) >= self._vocab_size:
            raise AdapterError("its tokenizer has tokens that the base has no embedding for")
        self._kept[digests] = tokenizer
        return tokenizer
