"""Which adapters are in memory: at most so many bytes, the least recently used ones leave, and come back on demand.

Who wants to compute with an adapter holds a lease. What is leased or pinned stays. Loading has a thread of its own, one
adapter at a time; beside what is counted here, the one being loaded takes up to twice its size for a moment.

Waiting is fair: where no room can be made, the least recently used adapters in use are marked as leaving; new leases of
these wait behind the one that needs the room, others do not. So nobody waits longer than running answers take.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from server.errors import AdapterError, OverloadedError, UnavailableError
from server.types import AdapterHandle

log = logging.getLogger("lorachat.adapters")

RETRY_AFTER = 5  # seconds


@dataclass(frozen=True, slots=True)
class Loadable:
    """An adapter that can be had. num_bytes: memory it takes at most. load: reads and packs it; may take its time."""

    key: str
    num_bytes: int
    load: Callable[[], AdapterHandle]


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """Bytes of adapters in memory and their limit; how many they are; loads and departures since the start."""

    used: int = 0
    capacity: int = 0
    resident: int = 0
    waiting: int = 0
    loads: int = 0
    evictions: int = 0


@dataclass(frozen=True, slots=True)
class Presence:
    """One adapter's place in memory. last_used: Unix seconds, None if never."""

    resident: bool = False
    leases: int = 0
    pinned: bool = False
    last_used: float | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    key: str
    num_bytes: int
    adapter: AdapterHandle | None = None  # None while it is loaded
    leases: int = 0
    order: int = 0  # of the last use
    leaving: bool = False
    retired: bool = False  # not to be had any more; goes with its last lease


class Lease:
    """The right to compute with an adapter until release(). Letting go of the object releases it too.

    A released one holds no weights: whoever keeps it (a request in a reference cycle, until the collector comes by)
    keeps nothing in memory that is not counted any more.
    """

    def __init__(self, memory: AdapterMemory, entry: _Entry) -> None:
        self._memory = memory
        self._entry: _Entry | None = entry

    @property
    def adapter(self) -> AdapterHandle:
        assert self._entry is not None, "a released lease gives no right to compute"
        assert self._entry.adapter is not None, "what is leased has been loaded"
        return self._entry.adapter

    def share(self) -> Lease:
        """Another one of the same adapter, which waits for nothing."""
        assert self._entry is not None, "a released lease gives no right to share"
        return self._memory.again(self._entry)

    def release(self) -> None:
        """Safe any number of times."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._memory.give_back(entry)

    def __del__(self) -> None:
        # Collected, which may happen in the middle of anything: only noted here.
        if self._entry is not None:
            self._memory.abandoned.append(self._entry)


_Waiter = tuple[Loadable, "Future[Lease]"]


class AdapterMemory:
    """All methods may be called from any thread. capacity: bytes. max_waiting: leases that may wait."""

    def __init__(self, capacity: int, *, max_waiting: int = 64) -> None:
        self.capacity = capacity
        self._max_waiting = max_waiting
        self.abandoned: deque[_Entry] = deque()  # of leases that nobody released
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._retired: set[_Entry] = set()
        self._pinned: frozenset[str] = frozenset()
        self._waiting: deque[_Waiter] = deque()
        self._uses = 0
        self._last_used: dict[str, float] = {}
        self._stats = MemoryStats(capacity=capacity)
        self._loader = ThreadPoolExecutor(1, "adapters")

    def acquire(self, wanted: Loadable) -> Future[Lease]:
        """The future may be cancelled. It fails with what load() raises, or with UnavailableError.

        Raises AdapterError for one that could never fit and OverloadedError if too many wait.
        """
        self.check_size(wanted.num_bytes)
        future: Future[Lease] = Future()
        with self._lock:
            # A lease that can be had at once does not wait, however many do.
            if len(self._waiting) >= self._max_waiting and not self._is_free(wanted.key):
                raise OverloadedError(
                    f"{len(self._waiting)} requests wait for room in the adapter memory. Try again in"
                    f" {RETRY_AFTER} s.",
                    retry_after=RETRY_AFTER,
                )
            self._waiting.append((wanted, future))
        self._pump()
        return future

    def check_size(self, num_bytes: int) -> None:
        """Raises AdapterError for an adapter that could never be in memory."""
        if num_bytes > self.capacity:
            raise AdapterError(
                f"it takes {num_bytes / 2**20:.1f} MiB, and all adapters together may take"
                f" {self.capacity / 2**20:.1f} MiB: raise --adapter-memory-gib",
                "size",
            )

    def again(self, entry: _Entry) -> Lease:
        with self._lock:
            entry.leases += 1
        return Lease(self, entry)

    def give_back(self, entry: _Entry) -> None:
        self.abandoned.append(entry)
        self.settle()

    def settle(self) -> None:
        """Take note of the leases that ended, and give out what can be had now."""
        self._pump()

    def retire(self, key: str) -> None:
        """Not to be had from memory any more; whoever holds a lease finishes. The next acquire loads it anew."""
        with self._lock:
            self._last_used.pop(key, None)
            entry = self._entries.pop(key, None)
            if entry is not None:
                entry.retired = True
                self._retired.add(entry)
                if entry.leases == 0 and entry.adapter is not None:
                    self._forget(entry)
        self._pump()

    def pin(self, keys: Iterable[str]) -> None:
        """From now on these stay once they are there, and no others."""
        with self._lock:
            self._pinned = frozenset(keys)
        self._pump()

    def presence(self, key: str) -> Presence:
        with self._lock:
            entry = self._entries.get(key)
            draining = sum(e.leases for e in self._retired if e.key == key)
            return Presence(
                resident=entry is not None and entry.adapter is not None,
                leases=(entry.leases if entry else 0) + draining,
                pinned=key in self._pinned,
                last_used=self._last_used.get(key),
            )

    def draining(self) -> dict[str, int]:
        """Leases of what was retired, by key."""
        with self._lock:
            return {entry.key: entry.leases for entry in self._retired if entry.leases}

    @property
    def stats(self) -> MemoryStats:
        with self._lock:
            return replace(
                self._stats,
                used=self._used(),
                resident=sum(1 for entry in self._all() if entry.adapter is not None),
                waiting=len(self._waiting),
            )

    # --- from here on: with the lock, unless it says otherwise ---

    def _all(self) -> list[_Entry]:
        return [*self._entries.values(), *self._retired]

    def _used(self) -> int:
        return sum(entry.num_bytes for entry in self._all())

    def _is_free(self, key: str) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.adapter is not None and not entry.leaving

    def _pump(self) -> None:
        """Give out what can be had, start what there is room for. Takes the lock; futures are told without it."""
        granted: list[tuple[Future[Lease], Lease]] = []
        failed: list[tuple[Future[Lease], Exception]] = []
        with self._lock:
            while self.abandoned:
                self._end_lease(self.abandoned.popleft())
            for entry in self._entries.values():
                entry.leaving = False
            waiting, self._waiting = self._waiting, deque()
            is_full = False
            for wanted, future in waiting:
                if future.cancelled():
                    continue
                found = self._entries.get(wanted.key)
                if found is not None and found.adapter is not None and not found.leaving:
                    if future.set_running_or_notify_cancel():
                        self._touch(found)
                        granted.append((future, self.again(found)))
                    continue
                if (
                    found is None
                    and self._pinned_bytes(wanted.key) + wanted.num_bytes > self.capacity
                ):
                    if future.set_running_or_notify_cancel():
                        failed.append((future, _no_room(wanted)))
                    continue
                self._waiting.append((wanted, future))
                if found is None and not is_full:
                    is_full = not self._start(wanted)
        for future, lease in granted:
            future.set_result(lease)
        for future, error in failed:
            future.set_exception(error)

    def _start(self, wanted: Loadable) -> bool:
        """Make room and begin to load. False if that has to wait for what is in use."""
        missing = self._used() + wanted.num_bytes - self.capacity
        # What was retired leaves of itself, and a load of another will end.
        going = [entry for entry in self._retired if entry.leases or entry.adapter is None]
        candidates = sorted(
            (
                e
                for e in self._entries.values()
                if e.adapter is not None and e.key not in self._pinned
            ),
            key=lambda entry: entry.order,
        )
        idle = [entry for entry in candidates if entry.leases == 0]
        if missing <= sum(entry.num_bytes for entry in idle):
            for entry in idle:
                if missing <= 0:
                    break
                missing -= entry.num_bytes
                del self._entries[entry.key]
                self._stats = replace(self._stats, evictions=self._stats.evictions + 1)
                log.info("%s left the memory for %s", entry.key, wanted.key)
            entry = self._entries[wanted.key] = _Entry(wanted.key, wanted.num_bytes)
            self._loader.submit(self._load, entry, wanted)
            return True
        missing -= sum(entry.num_bytes for entry in going)
        for entry in candidates:
            if missing <= 0:
                break
            missing -= entry.num_bytes
            entry.leaving = True
        return False

    def _load(self, entry: _Entry, wanted: Loadable) -> None:
        """In the loading thread, without the lock."""
        adapter: AdapterHandle | None = None
        failure: Exception | None = None
        try:
            adapter = wanted.load()
        except Exception as error:
            _let_go(error)
            failure = error
        told: list[Future[Lease]] = []
        with self._lock:
            self._stats = replace(self._stats, loads=self._stats.loads + 1)
            entry.adapter = adapter
            self._touch(entry)
            if failure is not None or entry.retired:
                self._forget(entry)
            if failure is not None:
                told = [future for waiter, future in self._waiting if waiter is wanted]
                self._waiting = deque(item for item in self._waiting if item[0] is not wanted)
        for future in told:
            if future.set_running_or_notify_cancel():
                assert failure is not None
                future.set_exception(failure)
        self._pump()

    def _end_lease(self, entry: _Entry) -> None:
        entry.leases -= 1
        if entry.leases == 0 and entry.retired:
            self._forget(entry)

    def _touch(self, entry: _Entry) -> None:
        self._uses += 1
        entry.order = self._uses
        self._last_used[entry.key] = time.time()

    def _forget(self, entry: _Entry) -> None:
        self._retired.discard(entry)
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]

    def _pinned_bytes(self, besides: str) -> int:
        """Of what is in memory to stay."""
        return sum(
            entry.num_bytes
            for entry in self._entries.values()
            if entry.key in self._pinned and entry.key != besides
        )


def _let_go(error: BaseException | None) -> None:
    """Clear the frames that an error came through: they hold the file that was read for as long as the error is kept,
    and its callers' frames, which hold the error, make that until the collector comes by."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _no_room(wanted: Loadable) -> UnavailableError:
    return UnavailableError(
        f"The adapter {wanted.key} does not fit in memory beside the pinned ones. Unpin one, or give the server more"
        " with --adapter-memory-gib."
    )
