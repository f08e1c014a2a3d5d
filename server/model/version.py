"""One adapter version's folder: all of it but the weights' values, read and checked. It knows no volume.

Two kinds: published by the trainer, with a manifest that signs every file; and, where the operator allows it, what
plain PEFT, TRL or Unsloth saved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from server.errors import AdapterError
from server.model.adapter import WEIGHTS_FILE, read_ranks
from server.model.loader import BaseModel
from server.model.lora import Ranks
from server.model.manifest import check_files, read_manifest, read_small, within
from server.model.peft_config import CONFIG_FILE, LoraSettings, read_settings
from server.model.probe import NoProbe, Probe, read_probe
from server.model.tokenizer import ChatTokenizer
from server.model.version_tokenizer import TOKENIZER_FILES, Tokenizers

TEMPLATE_FILE = "chat_template.jinja"
# A safetensors file of this size is no adapter of a model that a CPU serves.
MAX_WEIGHTS_BYTES = 64 * 2**30

State = tuple[tuple[str, int, int], ...]  # path, bytes and modification time of each file


@dataclass(frozen=True, slots=True)
class Version:
    """ranks: of every module. sha256: of the weights' file. base: as the adapter names it. signed: by a manifest.

    created: Unix seconds. state: the files when they were read.
    """

    key: str
    folder: Path
    state: State
    signed: bool
    base: str
    created: int
    sha256: str
    settings: LoraSettings
    ranks: Ranks
    stop_token_ids: frozenset[int]
    tokenizer: ChatTokenizer
    probe: Probe | NoProbe


class Reader:
    """Reads versions for one base."""

    def __init__(self, base: BaseModel, weights_digest: str) -> None:
        self._base = base
        self._weights_digest = weights_digest
        self._tokenizers = Tokenizers(base.config.vocab_size)

    def published(self, key: str, folder: Path) -> Version:
        """A version with its manifest. Raises AdapterError with what is wrong, OSError if it cannot be read."""
        state = state_of(folder)
        _check_kinds(folder)
        with failing("manifest"):
            manifest = read_manifest(folder)
            template = manifest.chat_template.file
        with failing("digest"):
            needed = (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES, template)
            check_files(folder, manifest, needed, later=WEIGHTS_FILE)
            if manifest.files[template].sha256 != manifest.chat_template.sha256:
                raise AdapterError("manifest.json gives two digests for the chat template")
        with failing("base"):
            self._check_base(manifest.base.id, manifest.base.weights_digest)
        with failing("probe"):  # another base has another vocabulary, so that is known first
            probe = read_probe(manifest.probe, self._base.config.vocab_size)
        with failing("tokenizer"):
            digests = tuple(manifest.files[name].sha256 for name in TOKENIZER_FILES)
            tokenizer = self._tokenizers.get(folder, digests)
            text = _text(within(folder, template))
        with failing("config"):
            settings = read_settings(folder / CONFIG_FILE)
        return Version(
            key=key,
            folder=folder,
            state=state,
            signed=True,
            base=manifest.base.id,
            created=int(datetime.fromisoformat(manifest.created).timestamp()),
            sha256=manifest.files[WEIGHTS_FILE].sha256,
            settings=settings,
            ranks=self._ranks(folder, settings),
            stop_token_ids=manifest.stop_token_ids,
            tokenizer=ChatTokenizer(tokenizer, text),
            probe=probe,
        )

    def unsigned(self, name: str, folder: Path, version: str | None) -> Version:
        """What PEFT saved, as it stands. version: its name, or None to name it after its contents.

        The base's tokenizer and template stand in where it brings none. Raises AdapterError and OSError as above.
        """
        state = state_of(folder)
        _check_kinds(folder)
        for path in folder.iterdir():  # libraries read more of these files than we name
            within(folder, path.name)
        with failing("config"):
            settings = read_settings(folder / CONFIG_FILE)
        ranks = self._ranks(folder, settings)
        names = (CONFIG_FILE, WEIGHTS_FILE, *TOKENIZER_FILES, TEMPLATE_FILE)
        paths = {file: folder / file for file in names}
        digests = {file: _sha256(path) for file, path in paths.items() if path.is_file()}
        contents = hashlib.sha256(json.dumps(sorted(digests.items())).encode()).hexdigest()
        with failing("tokenizer"):
            tokenizer, stops = self._own_tokenizer(folder, paths, digests)
        config = json.loads(read_small(paths[CONFIG_FILE]))
        return Version(
            key=f"{name}@{version or contents[:12]}",
            folder=folder,
            state=state,
            signed=False,
            base=str(config.get("base_model_name_or_path") or ""),
            created=int(paths[WEIGHTS_FILE].stat().st_mtime),
            sha256=digests[WEIGHTS_FILE],
            settings=settings,
            ranks=ranks,
            stop_token_ids=stops,
            tokenizer=tokenizer,
            probe=NoProbe("it has no manifest"),
        )

    def _own_tokenizer(
        self, folder: Path, paths: dict[str, Path], digests: dict[str, str]
    ) -> tuple[ChatTokenizer, frozenset[int]]:
        template = None
        if TEMPLATE_FILE in digests:
            template = _text(paths[TEMPLATE_FILE])
        if not all(name in digests for name in TOKENIZER_FILES):
            return self._base.tokenizer.with_template(template), self._base.stop_token_ids
        own: Any = self._tokenizers.get(folder, tuple(digests[name] for name in TOKENIZER_FILES))
        stops = self._base.stop_token_ids
        if own.eos_token_id is not None:
            stops |= {own.eos_token_id}
        template = template or own.chat_template or self._base.tokenizer.chat_template
        return ChatTokenizer(own, template), stops

    def _ranks(self, folder: Path, settings: LoraSettings) -> Ranks:
        with failing("size"):
            path = within(folder, WEIGHTS_FILE)
            if path.is_file() and path.stat().st_size > MAX_WEIGHTS_BYTES:
                raise AdapterError(f"{WEIGHTS_FILE} has over {MAX_WEIGHTS_BYTES} bytes")
        with failing("tensors"):
            return read_ranks(folder, self._base.config, settings)

    def _check_base(self, base_id: str, digest: str | None) -> None:
        if digest is not None and digest != self._weights_digest:
            raise AdapterError(
                f"it was trained for another base: {base_id} with weights {digest[:19]}…;"
                f" this server has {self._base.id} with {self._weights_digest[:19]}…"
            )
        if digest is None and base_id != self._base.id:
            raise AdapterError(f"it was trained for {base_id}; this server has {self._base.id}")


def state_of(folder: Path) -> State:
    """What tells that a version's files have changed: each one's path, size and time. Raises OSError."""
    found = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _check_kinds(folder: Path) -> None:
    """Whoever opens a pipe waits for a writer, for ever, and nothing new would be served any more."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise AdapterError(f"{path.name} is neither a file nor a folder", "path")


def is_plain(folder: Path) -> bool:
    """Whether this is what PEFT saved, and not a folder of versions."""
    return os.path.lexists(folder / CONFIG_FILE)


@contextmanager
def failing(kind: str) -> Iterator[None]:
    """An AdapterError of this part is of that kind, unless it knows better."""
    try:
        yield
    except AdapterError as error:
        if error.kind == "tensors":
            error.kind = kind
        raise


def _text(path: Path) -> str:
    try:
        return read_small(path).decode("utf-8")
    except UnicodeDecodeError:
        raise AdapterError(f"{path.name} is not UTF-8") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
