"""What one look at the adapter volume found, and which names on it count. It reads no file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from server.model.adapter_memory import Loadable
from server.model.admission import AdapterRef
from server.model.tokenizer import ChatTokenizer
from server.model.version import State, Version
from server.types import Message, TextDecoder

BASE_NAME = "base"
LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The base, or the base with one adapter version, whose weights may be in memory or not. Fits ServedModel."""

    id: str
    adapter: AdapterRef | None
    stop_token_ids: frozenset[int]
    created: int
    tokenizer: ChatTokenizer
    version: Version | None = None
    loadable: Loadable | None = None

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.encode_chat(messages)

    def text_decoder(self) -> TextDecoder:
        return self.tokenizer.text_decoder()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version is not served. kind: the check it failed. state: its files then; None: look again in any case.

    since: Unix seconds.
    """

    state: State | None
    kind: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Unloaded:
    """What an operator took out of service. since: Unix seconds. model: what was served. state: its files then.

    A manifest makes a version immutable; what has none is another one once its files have changed.
    """

    since: float
    model: LoadedModel
    state: State | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One look at the volume. Replaced whole, so readers in other threads never see half of one."""

    versions: dict[str, LoadedModel] = field(default_factory=dict)  # by NAME@VERSION
    latest: dict[str, str] = field(default_factory=dict)  # NAME -> NAME@VERSION
    refused: dict[str, Refusal] = field(default_factory=dict)  # by NAME@VERSION, or NAME


def is_name(text: str) -> bool:
    """Whether an adapter may be called so (docs/contracts.md, section 1)."""
    return text != BASE_NAME and _NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether a folder of this name is looked at as a version."""
    return text not in ("", LATEST) and not text.startswith(".") and "/" not in text


def keys_of(name: str, keys: Iterable[str]) -> list[str]:
    """Those of the keys that NAME or NAME@VERSION speaks of."""
    return sorted(key for key in keys if key == name or key.startswith(f"{name}@"))


def subfolders(folder: Path) -> list[Path]:
    """Names that begin with a dot are versions being written; `latest` is read as a link, not as a folder.

    Raises OSError if a folder that is there cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # os.path.isdir, and not Path.is_dir: that one raises for a link with an impossible target.
    return [
        e for e in entries if not e.name.startswith(".") and e.name != LATEST and os.path.isdir(e)
    ]
