"""What an operator may ask about adapters and do with them, by their names under the volume's root; never by a path."""

from __future__ import annotations

import logging
import time
from collections import Counter
from concurrent.futures import Future
from typing import Any

from server.adapter_types import AdapterInfo, AdapterStats
from server.errors import ConflictError, ModelNotFoundError, OverloadedError, UnavailableError
from server.model.adapter_memory import Lease
from server.model.admission import WAIT_SECONDS
from server.model.catalogue import VolumeCatalogue
from server.model.snapshot import (
    LATEST,
    LoadedModel,
    Refusal,
    Unloaded,
    is_name,
    is_version,
    keys_of,
)
from server.types import ServedModel

log = logging.getLogger("lorachat.adapters")


class AdapterDesk:
    """Over one catalogue. What is unloaded or pinned is so until this process ends. Fits Adapters."""

    def __init__(self, catalogue: VolumeCatalogue) -> None:
        self._catalogue = catalogue
        self._memory = catalogue.memory
        self._pins: set[str] = set()  # NAME or NAME@VERSION, guarded by the catalogue's looking

    def refresh(self) -> None:
        """Look at the volume. A pin of a NAME follows what it stands for."""
        self._catalogue.refresh()
        with self._catalogue.looking:
            self._apply_pins()

    def acquire(self, model: ServedModel) -> Future[Lease]:
        assert isinstance(model, LoadedModel), "models come from the catalogue"
        return self._catalogue.acquire(model)

    @property
    def stats(self) -> AdapterStats:
        memory = self._memory.stats
        refused = Counter(refusal.kind for refusal in self._catalogue.snapshot.refused.values())
        return AdapterStats(
            refused=refused,
            refusals=dict(self._catalogue.refusals),
            bytes_used=memory.used,
            bytes_limit=memory.capacity,
            resident=memory.resident,
            waiting=memory.waiting,
            loads=memory.loads,
            evictions=memory.evictions,
        )

    def describe(self) -> list[AdapterInfo]:
        snapshot, unloaded = self._catalogue.snapshot, dict(self._catalogue.unloaded)
        latest = set(snapshot.latest.values())
        rows = [self._served(model, key in latest) for key, model in snapshot.versions.items()]
        rows += [_refused(key, refusal) for key, refusal in snapshot.refused.items()]
        draining = self._memory.draining()
        for key, entry in unloaded.items():
            running = draining.pop(key, 0)
            state = "draining" if running else "unloaded"
            rows.append(_row(entry.model, state, since=entry.since, requests_running=running))
        known = {row.id for row in rows}
        for key, running in draining.items():
            if key not in known:
                name, _, version = key.partition("@")
                rows.append(AdapterInfo(key, name, version, "draining", requests_running=running))
        return sorted(rows, key=lambda row: row.id)

    def reload(self, name: str) -> list[AdapterInfo]:
        catalogue = self._catalogue
        with catalogue.looking:
            snapshot = catalogue.snapshot
            known = {*snapshot.versions, *snapshot.refused, *catalogue.unloaded}
            for key in keys_of(name, known):
                catalogue.unloaded.pop(key, None)
                catalogue.anew.add(key)
            self.refresh()
            return self._told(name)

    def unload(self, name: str) -> list[AdapterInfo]:
        catalogue = self._catalogue
        with catalogue.looking:
            self._told(name)
            for key in keys_of(name, catalogue.snapshot.versions):
                model = catalogue.snapshot.versions[key]
                version = model.version
                state = version.state if version is not None and not version.signed else None
                catalogue.unloaded[key] = Unloaded(time.time(), model, state)
                self._pins.discard(key)
            self._pins.discard(name)
            self.refresh()
            return self._told(name)

    def pin(self, name: str) -> list[AdapterInfo]:
        with self._catalogue.looking:
            model = self._catalogue.find(name)
            if model.adapter is None:
                raise ModelNotFoundError(name, sorted(self._catalogue.snapshot.latest))
            keys = self._pinned_keys() | {model.id}
            versions = self._catalogue.snapshot.versions
            needed = sum(_bytes(versions[key]) for key in keys)
            if needed > self._memory.capacity:
                raise ConflictError(
                    f"The pinned adapters would take {needed / 2**20:.1f} MiB, and all adapters together may take"
                    f" {self._memory.capacity / 2**20:.1f} MiB: unpin one, or raise --adapter-memory-gib."
                )
            self._pins.add(name)
            self._apply_pins()
            return self._told(name)

    def unpin(self, name: str) -> list[AdapterInfo]:
        with self._catalogue.looking:
            told = self._told(name)
            for key in (name, *(row.id for row in told)):
                self._pins.discard(key)
            self._apply_pins()
            return self._told(name)

    def is_at(self, name: str, path: str) -> bool:
        root = self._catalogue.volume
        adapter, _, version = name.partition("@")
        if root is None or not is_name(adapter) or (version and not is_version(version)):
            return False
        try:
            # What a name stands for is joined by us and not taken from the path; a link out of the root is nobody.
            there, own = (root / path).resolve(), (root / adapter).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        if not own.is_relative_to(root.resolve()):
            return False
        places = {own / version} if version else {own, (own / LATEST).resolve()}
        return there in places

    def _pinned_keys(self) -> set[str]:
        snapshot = self._catalogue.snapshot
        keys = {snapshot.latest.get(name, name) for name in self._pins}
        return keys & snapshot.versions.keys()

    def _apply_pins(self) -> None:
        """Bring what is pinned into memory. What does not fit (a NAME now stands for a larger one) stays unpinned."""
        keys = self._pinned_keys()
        self._memory.pin(keys)
        for key in sorted(keys):
            if self._memory.presence(key).resident:
                continue
            try:
                future = self._catalogue.acquire(self._catalogue.snapshot.versions[key])
                future.result(WAIT_SECONDS).release()
            except (OverloadedError, TimeoutError, UnavailableError) as error:
                log.warning("%s is pinned and not in memory yet: %s", key, error)

    def _told(self, name: str) -> list[AdapterInfo]:
        """Rows of NAME or NAME@VERSION. Raises ModelNotFoundError where there are none."""
        rows = [row for row in self.describe() if name in (row.id, row.name)]
        if not rows:
            raise ModelNotFoundError(name, sorted(self._catalogue.snapshot.latest))
        return rows

    def _served(self, model: LoadedModel, is_latest: bool) -> AdapterInfo:
        presence = self._memory.presence(model.id)
        if not presence.resident:
            state = "available"
        elif presence.pinned:
            state = "pinned"
        else:
            state = "serving" if presence.leases else "loaded"
        return _row(
            model,
            state,
            latest=is_latest,
            pinned=presence.pinned,
            last_used=presence.last_used,
            requests_running=presence.leases,
        )


def _bytes(model: LoadedModel) -> int:
    return 0 if model.adapter is None else model.adapter.num_bytes


def _row(model: LoadedModel, state: str, **fields: Any) -> AdapterInfo:
    assert model.adapter is not None
    assert model.version is not None
    name, _, version = model.id.partition("@")
    return AdapterInfo(
        id=model.id,
        name=name,
        version=version,
        state=state,
        signed=model.version.signed,
        base=model.version.base,
        digest=model.adapter.digest,
        rank=model.adapter.rank,
        bytes=model.adapter.num_bytes,
        created=model.created,
        probe=model.adapter.probe,
        **fields,
    )


def _refused(key: str, refusal: Refusal) -> AdapterInfo:
    name, _, version = key.partition("@")
    return AdapterInfo(key, name, version, "refused", reason=refusal.reason, since=refusal.since)
