"""The models this server has: the base, and every adapter version on the volume that passes its checks.

Weights are never merged into the base, so a version can join or leave at any moment; a request holds the version it
began with until it ends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from server.errors import AdapterError, ModelNotFoundError
from server.model.adapter_memory import AdapterMemory, Lease
from server.model.admission import Admission, NotNowError, Packer, PlainPacker
from server.model.checked_cache import CheckedCache
from server.model.loader import BaseModel
from server.model.probe import Score
from server.model.snapshot import (
    BASE_NAME,
    LATEST,
    LoadedModel,
    Refusal,
    Snapshot,
    Unloaded,
    is_name,
    subfolders,
)
from server.model.version import Reader, State, is_plain, state_of
from server.types import ModelInfo

log = logging.getLogger("lorachat.adapters")

UNSIGNED = "it has no manifest.json, so it was not published by the trainer; --allow-unsigned-adapters serves it"
UNBOUNDED = 2**62  # bytes: more than there are


class VolumeCatalogue:
    """Call refresh() once at start and then as often as new versions should be noticed. Any thread may call anything.

    memory, packer, score: where adapters are kept, and what makes and tries them; by default without bound, as read and
    not tried. cache: what passed before this start. allow_unsigned: serve what has no manifest too.
    """

    def __init__(
        self,
        base: BaseModel,
        volume: Path | None,
        *,
        weights_digest: str,
        max_context: int,
        created: int,
        memory: AdapterMemory | None = None,
        packer: Packer | None = None,
        score: Score | None = None,
        cache: CheckedCache | None = None,
        allow_unsigned: bool = False,
    ) -> None:
        self.max_context = max_context
        self.vocab_size = base.config.vocab_size
        self.fingerprint = f"fp_{weights_digest.removeprefix('sha256:')[:12]}"
        self.memory = memory or AdapterMemory(UNBOUNDED)
        self.refusals: Counter[str] = Counter()  # by kind, since the start
        # Guarded by looking: what operators took out of service, and what is to be checked as if it were new.
        self.unloaded: dict[str, Unloaded] = {}
        self.anew: set[str] = set()
        self.looking = threading.RLock()
        self._waiting: set[str] = set()  # could not be checked at this look
        self._base = base
        self._volume = volume
        self._weights_digest = weights_digest
        self._allow_unsigned = allow_unsigned
        self._reader = Reader(base, weights_digest)
        self._broken: set[str] = set()  # set.add and set.pop are atomic; any thread may add
        self._plain: dict[
            str, str
        ] = {}  # NAME of a plain folder -> the key of its present contents
        self._admission = Admission(
            base.config,
            self.memory,
            packer or PlainPacker(base.config),
            score=score,
            cache=cache,
            on_broken=self._broken.add,
        )
        self._base_model = LoadedModel(
            BASE_NAME, None, base.stop_token_ids, created, base.tokenizer
        )
        self._snapshot = Snapshot()

    @property
    def volume(self) -> Path | None:
        return self._volume

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    def find(self, name: str) -> LoadedModel:
        """`base` or its id, NAME (the latest version), or NAME@VERSION. Raises ModelNotFoundError."""
        snapshot = self._snapshot
        key = snapshot.latest.get(name.removesuffix(f"@{LATEST}"), name)
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

    def acquire(self, model: LoadedModel) -> Future[Lease]:
        """The weights of a model with an adapter, brought into memory if they are not. See AdapterMemory.acquire."""
        assert model.loadable is not None, "the base has no adapter"
        return self.memory.acquire(model.loadable)

    @property
    def refused(self) -> dict[str, str]:
        """NAME@VERSION -> why it is not served."""
        return {key: refusal.reason for key, refusal in self._snapshot.refused.items()}

    def refresh(self) -> None:
        """Look at the volume: take up what is new, drop what is gone. Never raises for what it finds there."""
        if self._volume is None:
            return
        with self.looking:
            self.memory.settle()
            while self._broken:
                self.anew.add(self._broken.pop())
            before = self._snapshot
            try:
                self._snapshot = self._look(self._volume)
            except OSError as error:  # a network volume may be away for a moment
                log.error("the adapters folder cannot be read; what was served stays: %s", error)
                return
            for key in before.versions.keys() - self._snapshot.versions.keys():
                self.memory.retire(key)
                log.info("%s is no longer served", key)

    # --- from here on: one thread at a time ---

    def _look(self, volume: Path) -> Snapshot:
        found = Snapshot()
        for folder in subfolders(volume):
            name = folder.name
            if not is_name(name):
                continue
            plain = self._plain_version(name, folder, found) if is_plain(folder) else None
            for version_folder in subfolders(folder):
                signed = os.path.lexists(version_folder / "manifest.json")
                if is_plain(folder) and not signed:
                    continue  # training left it there, such as a checkpoint
                self._take(f"{name}@{version_folder.name}", name, version_folder, found)
            served = [key for key in found.versions if key.startswith(f"{name}@")]
            if served:
                found.latest[name] = self._latest(folder, served, plain)
        self.unloaded = {
            key: entry for key, entry in self.unloaded.items() if self._is_there(volume, key)
        }
        self.anew &= self._waiting
        self._waiting.clear()
        return found

    def _is_there(self, volume: Path, key: str) -> bool:
        name, _, version = key.partition("@")
        return self._plain.get(name) == key or os.path.isdir(volume / name / version)

    def _plain_version(self, name: str, folder: Path, found: Snapshot) -> str | None:
        """The key of what lies in NAME itself, if that is served."""
        key = self._plain.get(name, name)
        self._take(key, name, folder, found, plain=True)
        return self._plain.get(name)

    def _take(
        self, key: str, name: str, folder: Path, found: Snapshot, *, plain: bool = False
    ) -> None:
        """Put the version where it belongs: among those that are served, refused, or neither."""
        before = self._snapshot
        known = before.versions.get(key)
        unloaded = self.unloaded.get(key)
        if unloaded is not None:
            if unloaded.state is None or unloaded.state == _state_or_none(folder):
                return
            del self.unloaded[key]
        if known is not None and key not in self.anew and _is_same(known, folder):
            found.versions[key] = known
            return
        refusal = before.refused.get(key) or before.refused.get(name if plain else key)
        state: State | None = None
        try:
            state = state_of(folder)
            if refusal is not None and refusal.state == state and key not in self.anew:
                found.refused[name if plain else key] = refusal
                return
            model = self._read(key, name, folder, plain=plain)
        except NotNowError as error:
            log.warning("%s waits to be checked: %s", key, error)
            self._waiting.add(key)
            if known is not None:
                found.versions[key] = known
            return
        except Exception as error:  # no version may keep the others from being served
            if isinstance(error, OSError):  # the volume's fault: the next look may fare better
                state = None
            self._refuse(name if plain else key, state, error, found)
            return
        if plain:
            self._plain[name] = model.id
            if model.id in self.unloaded:
                return
        found.versions[model.id] = model
        assert model.adapter is not None
        log.info("%s is served (rank %d)", model.id, model.adapter.rank)

    def _refuse(self, key: str, state: State | None, error: Exception, found: Snapshot) -> None:
        kind = error.kind if isinstance(error, AdapterError) else "unreadable"
        reason = str(error) if isinstance(error, AdapterError | OSError) else repr(error)
        before = self._snapshot.refused.get(key)
        is_news = before is None or (before.state, before.reason) != (state, reason)
        if is_news:
            log.error("%s is refused: %s", key, reason)
            self.refusals[kind] += 1
        since = time.time() if before is None or is_news else before.since
        found.refused[key] = Refusal(state, kind, reason, since)

    def _read(self, key: str, name: str, folder: Path, *, plain: bool) -> LoadedModel:
        assert self._volume is not None
        if folder.is_symlink():
            raise AdapterError("a version must be a folder, not a link", "path")
        if not folder.resolve().is_relative_to(self._volume.resolve()):
            raise AdapterError("it leads out of the adapters folder", "path")
        if not plain and os.path.lexists(folder / "manifest.json"):
            version = self._reader.published(key, folder)
        elif self._allow_unsigned:
            version = self._reader.unsigned(name, folder, None if plain else folder.name)
        else:
            raise AdapterError(UNSIGNED, "manifest")
        anew = key in self.anew
        if anew or key in self._snapshot.versions:
            self.memory.retire(key)
        ref, loadable = self._admission.admit(version, anew=anew)
        return LoadedModel(
            id=version.key,
            adapter=ref,
            stop_token_ids=version.stop_token_ids,
            created=version.created,
            tokenizer=version.tokenizer,
            version=version,
            loadable=loadable,
        )

    def _latest(self, folder: Path, served: Sequence[str], plain: str | None) -> str:
        """What NAME stands for: the version `latest` points at, else the newest one that is served."""
        newest = plain if plain is not None and plain in served else max(served)
        try:
            key = f"{folder.name}@{os.readlink(folder / LATEST)}"
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


def _info(name: str, model: LoadedModel) -> ModelInfo:
    digest = None if model.adapter is None else model.adapter.digest
    return ModelInfo(name, model.id, BASE_NAME, model.created, digest)


def _is_same(model: LoadedModel, folder: Path) -> bool:
    """Whether its files are those that were checked: a manifest makes a version immutable."""
    version = model.version
    return version is not None and (version.signed or version.state == _state_or_none(folder))


def _state_or_none(folder: Path) -> State | None:
    """None while the folder changes under the reader, which is no state that ever was."""
    try:
        return state_of(folder)
    except OSError:
        return None
