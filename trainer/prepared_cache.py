"""Keeps what the data stage made of its rows, so that the same rows are not sorted and tokenised twice.

An entry is one file, named by a digest of all that it was made from, written beside its place and renamed: it is whole
or not there, and two processes that make the same one do no harm. It knows nothing about sources or models.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.template import IGNORED, Encoded

MOST_BYTES = 2_000_000_000  # of all entries together
STALE_SECONDS = 24 * 60 * 60.0
Tallies = dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class SortedRows:
    """The rows that stayed. places: of each among all that were chosen; test: which of the rows are held out.

    tallies: rows lost, by reason and by source.
    """

    places: list[int]
    encoded: list[Encoded]
    test: frozenset[int]
    tallies: Tallies


class PreparedCache:
    """A folder of entries. The least recently used go when all together are larger than `most_bytes`."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def load(self, key: str) -> SortedRows | None:
        """The entry; None if there is none that is whole."""
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                rows = _unpack(arrays)
            os.utime(path)  # what is used stays
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        return rows

    def save(self, key: str, rows: SortedRows) -> str | None:
        """Keep an entry; why it could not be kept, if so. Nothing is lost then but time."""
        partial = self._folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                np.savez(file, **_pack(rows))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._path(key))
            self._make_room(key)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            return str(error)
        return None

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npz"

    def _make_room(self, newest: str) -> None:
        for left in self._folder.glob(".tmp-*"):  # by a process that was killed
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > STALE_SECONDS:
                    left.unlink()
        entries = []
        for path in self._folder.glob("*.npz"):
            with suppress(OSError):  # another process may be making room, too
                status = path.stat()
                entries.append((path.stem == newest, status.st_mtime, status.st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for is_newest, _, size, path in sorted(entries):
            if total <= self._most_bytes or is_newest:
                break
            with suppress(OSError):
                path.unlink()
            total -= size


def cache_from(environment: Mapping[str, str]) -> PreparedCache | None:
    """LORACHAT_PREPARED (empty: none), else `prepared` in LORACHAT_CACHE, in lorachat in XDG_CACHE_HOME or ~/.cache."""
    if (own := environment.get("LORACHAT_PREPARED")) is not None:
        return PreparedCache(Path(own)) if own else None
    if shared := environment.get("LORACHAT_CACHE"):
        return PreparedCache(Path(shared) / "prepared")
    try:
        home = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home
        return None
    return PreparedCache(home / "lorachat" / "prepared")


def _pack(rows: SortedRows) -> dict[str, Any]:
    ids = [token for encoded in rows.encoded for token in encoded.input_ids]
    labels = [label for encoded in rows.encoded for label in encoded.labels]
    ends = [end for encoded in rows.encoded for end in encoded.answer_ends]
    return {
        "places": np.array(rows.places, dtype=np.int64),
        "lengths": np.array([len(encoded.input_ids) for encoded in rows.encoded], dtype=np.int64),
        "ids": np.array(ids, dtype=np.int32),
        # A label is the token itself or none.
        "trained": np.array(labels, dtype=np.int32) != IGNORED,
        "answers": np.array([len(encoded.answer_ends) for encoded in rows.encoded], dtype=np.int64),
        "ends": np.array(ends, dtype=np.int64),
        "test": np.array(sorted(rows.test), dtype=np.int64),
        "tallies": np.frombuffer(json.dumps(rows.tallies).encode(), dtype=np.uint8),
    }


def _unpack(arrays: Mapping[str, Any]) -> SortedRows:
    """Raises ValueError and KeyError for what is no entry."""
    places, lengths = arrays["places"].tolist(), arrays["lengths"]
    ids, trained = arrays["ids"], arrays["trained"]
    labels = np.where(trained, ids, IGNORED)
    stops = np.cumsum(lengths).tolist()
    end_stops = np.cumsum(arrays["answers"]).tolist()
    ends = arrays["ends"].tolist()
    encoded, start, first = [], 0, 0
    for stop, last in zip(stops, end_stops, strict=True):
        row = Encoded(
            ids[start:stop].tolist(), labels[start:stop].tolist(), tuple(ends[first:last])
        )
        encoded.append(row)
        start, first = stop, last
    if len(places) != len(encoded) or start != len(ids):
        raise ValueError("not an entry")
    tallies: Tallies = json.loads(arrays["tallies"].tobytes())
    return SortedRows(places, encoded, frozenset(arrays["test"].tolist()), tallies)
