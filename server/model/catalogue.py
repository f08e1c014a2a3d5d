"""The models this server has: the base, and every adapter version on the volume that passes its checks.

Weights are never merged into the base, so a version can join or leave at any moment; a request holds the version it
began with until it ends.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerFast

from server.errors import AdapterError, ModelNotFoundError
from server.model.adapter import WEIGHTS_FILE, read_adapter
from server.model.loader import BaseModel
from server.model.lora import AdapterWeights
from server.model.manifest import check_files, read_manifest
from server.model.peft_config import CONFIG_FILE
from server.model.tokenizer import ChatTokenizer
from server.types import Message, ModelInfo, TextDecoder

log = logging.getLogger("lorachat.adapters")

BASE_NAME = "base"
# The second holds the special tokens, which templates write by name.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """The base, or the base with one adapter version. Fits ServedModel."""

    id: str
    adapter: AdapterWeights | None
    stop_token_ids: frozenset[int]
    created: int
    tokenizer: ChatTokenizer

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.encode_chat(messages)

    def text_decoder(self) -> TextDecoder:
        return self.tokenizer.text_decoder()


def _info(name: str, model: LoadedModel) -> ModelInfo:
    digest = None if model.adapter is None else model.adapter.digest
    return ModelInfo(name, model.id, BASE_NAME, model.created, digest)


_State = tuple[tuple[str, int, int], ...]  # path, bytes and modification time of each file


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One look at the volume. Replaced whole, so readers in other threads never see half of one."""

    versions: dict[str, LoadedModel] = field(default_factory=dict)  # by NAME@VERSION
    latest: dict[str, str] = field(default_factory=dict)  # NAME -> NAME@VERSION


class VolumeCatalogue:
    """Call refresh() once at start and then from one thread, as often as new versions should be noticed."""

    def __init__(
        self,
        base: BaseModel,
        volume: Path | None,
        *,
        weights_digest: str,
        max_context: int,
        created: int,
    ) -> None:
        self.max_context = max_context
        self.vocab_size = base.config.vocab_size
        self.fingerprint = f"fp_{weights_digest.removeprefix('sha256:')[:12]}"
        self._base = base
        self._volume = volume
        self._weights_digest = weights_digest
        self._base_model = LoadedModel(
            BASE_NAME, None, base.stop_token_ids, created, base.tokenizer
        )
        self._snapshot = _Snapshot()
        # NAME@VERSION -> its files when it was refused (None: look again in any case), and the reason.
        self._refused: dict[str, tuple[_State | None, str]] = {}
        # By the digests of their files, as long as a version uses them.
        self._tokenizers: WeakValueDictionary[tuple[str, ...], PreTrainedTokenizerFast] = (
            WeakValueDictionary()
        )

    def find(self, name: str) -> LoadedModel:
        """`base` or its id, NAME (the latest version), or NAME@VERSION. Raises ModelNotFoundError."""
        snapshot = self._snapshot
        key = snapshot.latest.get(name.removesuffix("@latest"), name)
        # Adapters go before the base's id: a base folder's name may be an adapter's too.
        if key in snapshot.versions:
            return snapshot.versions[key]
        if name in (BASE_NAME, self._base.id):
            return self._base_model
        raise ModelNotFoundError(name, [BASE_NAME, *sorted(snapshot.latest)])

    def list(self) -> list[ModelInfo]:
        snapshot = self._snapshot
        infos = [
            ModelInfo(
                BASE_NAME, self._base.id, None, self._base_model.created, self._weights_digest
            )
        ]
        for name, key in sorted(snapshot.latest.items()):
            infos.append(_info(name, snapshot.versions[key]))
        for key, model in sorted(snapshot.versions.items()):
            infos.append(_info(key, model))
        return infos

    @property
    def refused(self) -> dict[str, str]:
        """NAME@VERSION -> why it is not served."""
        return {key: reason for key, (_, reason) in self._refused.items()}

    def refresh(self) -> None:
        """Look at the volume: load what is new, drop what is gone. Never raises for what it finds there."""
        if self._volume is None:
            return
        try:
            self._snapshot = self._look(self._volume)
        except OSError as error:  # a network volume may be away for a moment
            log.error("the adapters folder cannot be read; what was served stays: %s", error)

    def _look(self, volume: Path) -> _Snapshot:
        versions: dict[str, LoadedModel] = {}
        latest: dict[str, str] = {}
        seen = set()
        for folder in _subfolders(volume):
            name = folder.name
            if name == BASE_NAME or not _NAME.fullmatch(name):
                continue
            for version_folder in _subfolders(folder):
                key = f"{name}@{version_folder.name}"
                seen.add(key)
                model = self._snapshot.versions.get(key) or self._load(key, version_folder)
                if model is not None:
                    versions[key] = model
            served = [key for key in versions if key.startswith(f"{name}@")]
            if served:
                latest[name] = self._latest(folder, served)
        self._refused = {key: entry for key, entry in self._refused.items() if key in seen}
        for key in self._snapshot.versions.keys() - versions.keys():
            log.info("%s is no longer on the volume and no longer served", key)
        return _Snapshot(versions, latest)

    def _load(self, key: str, folder: Path) -> LoadedModel | None:
        """The version, or None where it is refused: until its files change, for it may be a copy still being made."""
        state: _State | None = None
        try:
            state = _state(folder)
            if self._refused.get(key, (None, ""))[0] == state:
                return None
            model = self._read(key, folder)
        except Exception as error:  # no version may keep the others from being served
            reason = str(error) if isinstance(error, AdapterError | OSError) else repr(error)
            if isinstance(error, OSError):  # the volume's fault: the next look may fare better
                state = None
            if self._refused.get(key) != (state, reason):
                log.error("%s is refused: %s", key, reason)
            self._refused[key] = (state, reason)
            return None
        self._refused.pop(key, None)
        assert model.adapter is not None
        log.info("%s is served (%.1f MB)", key, model.adapter.num_bytes / 1e6)
        return model

    def _read(self, key: str, folder: Path) -> LoadedModel:
        if folder.is_symlink():
            raise AdapterError("a version must be a folder, not a link")
        manifest = read_manifest(folder)
        template = manifest.chat_template.file
        check_files(folder, manifest, (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES, template))
        if manifest.files[template].sha256 != manifest.chat_template.sha256:
            raise AdapterError("manifest.json gives two digests for the chat template")
        digest = manifest.base.weights_digest
        if digest is not None and digest != self._weights_digest:
            raise AdapterError(
                f"it was trained for another base: {manifest.base.id} with weights {digest[:19]}…;"
                f" this server has {self._base.id} with {self._weights_digest[:19]}…"
            )
        if digest is None and manifest.base.id != self._base.id:
            raise AdapterError(
                f"it was trained for {manifest.base.id}; this server has {self._base.id}"
            )
        weights = read_adapter(folder, key, self._base.config)
        digests = tuple(manifest.files[name].sha256 for name in TOKENIZER_FILES)
        return LoadedModel(
            id=key,
            adapter=weights,
            stop_token_ids=manifest.stop_token_ids,
            created=int(datetime.fromisoformat(manifest.created).timestamp()),
            tokenizer=ChatTokenizer(
                self._tokenizer(folder, digests), (folder / template).read_text("utf-8")
            ),
        )

    def _tokenizer(self, folder: Path, digests: tuple[str, ...]) -> PreTrainedTokenizerFast:
        """Shared by all adapters that carry the same one: a large vocabulary takes much memory."""
        tokenizer = self._tokenizers.get(digests)
        if tokenizer is None:
            try:
                tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            except Exception as error:  # whatever the broken part happens to break
                raise AdapterError(f"its tokenizer cannot be read ({error!r})") from None
            if max(tokenizer.get_vocab().values()) >= self._base.config.vocab_size:
                raise AdapterError("its tokenizer has tokens that the base has no embedding for")
            self._tokenizers[digests] = tokenizer
        return tokenizer

    def _latest(self, folder: Path, served: Sequence[str]) -> str:
        """What NAME stands for: the version `latest` points at, else the newest one that is served."""
        newest = max(served)
        try:
            key = f"{folder.name}@{os.readlink(folder / 'latest')}"
        except OSError:
            return newest
        if key in served:
            return key
        previous = self._snapshot.latest.get(folder.name)
        fallback = previous if previous in served and previous is not None else newest
        if fallback != previous:
            log.warning(
                "'latest' of %s is %s, which is not served; %s is", folder.name, key, fallback
            )
        return fallback


def _subfolders(folder: Path) -> list[Path]:
    """Names that begin with a dot are versions being written; `latest` is read as a link, not as a folder.

    Raises OSError if a folder that is there cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    # os.path.isdir, and not Path.is_dir: that one raises for a link with an impossible target.
    return [
        e for e in entries if not e.name.startswith(".") and e.name != "latest" and os.path.isdir(e)
    ]


def _state(folder: Path) -> _State:
    """What tells that a version's files have changed: each one's path, size and time."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)
