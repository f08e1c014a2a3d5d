"""Adapters come into memory when they are asked for and leave it when others need the room; nobody is forgotten."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass

import pytest

from server.errors import AdapterError, OverloadedError, UnavailableError
from server.model.adapter_memory import AdapterMemory, Lease, Loadable

SIZE = 10


@dataclass(eq=False)
class Weights:
    key: str
    digest: str = "d"


class Content(bytearray):
    """Of a file that is being read. A class of its own, so that references to it can be weak."""


class Shelf:
    """Adapters of one size, and what was loaded of them."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.alive: list[weakref.ref[Weights]] = []
        self.gate = threading.Event()
        self.gate.set()

    def adapter(self, key: str, size: int = SIZE, fail: Exception | None = None) -> Loadable:
        def load() -> Weights:
            assert self.gate.wait(10)
            self.loaded.append(key)
            if fail is not None:
                raise fail
            weights = Weights(key)
            self.alive.append(weakref.ref(weights))
            return weights

        return Loadable(key, size, load)

    def in_memory(self) -> list[str]:
        gc.collect()
        return sorted(weights.key for ref in self.alive if (weights := ref()) is not None)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def take(memory: AdapterMemory, adapter: Loadable) -> Lease:
    return memory.acquire(adapter).result(10)


def use(memory: AdapterMemory, adapter: Loadable) -> None:
    take(memory, adapter).release()


def waits(future: Future[Lease]) -> bool:
    try:
        future.result(0.05)
    except NotYet:
        return True
    return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_least_recently_used_leaves_and_comes_back(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    a, b, c = (shelf.adapter(key) for key in "abc")
    for adapter in (a, b, a, c):  # b is the one not used for longest
        use(memory, adapter)
    assert shelf.loaded == ["a", "b", "c"]
    assert shelf.in_memory() == ["a", "c"]
    use(memory, b)
    assert shelf.in_memory() == ["b", "c"]
    stats = memory.stats
    assert (stats.used, stats.resident, stats.loads, stats.evictions) == (20, 2, 4, 2)


def test_what_is_in_use_stays_and_a_request_for_another_waits_for_it(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    a, b = take(memory, shelf.adapter("a")), take(memory, shelf.adapter("b"))
    waiting = memory.acquire(shelf.adapter("c"))
    assert waits(waiting)
    assert shelf.in_memory() == ["a", "b"]
    b.release()
    assert waiting.result(10).adapter.key == "c"
    del b
    assert shelf.in_memory() == ["a", "c"]
    assert a.adapter.key == "a"


def test_one_in_constant_use_does_not_keep_another_waiting_for_ever(shelf: Shelf) -> None:
    """Overlapping answers of one adapter never let it be idle; those that come later stand behind who waits."""
    memory = AdapterMemory(SIZE)
    a = shelf.adapter("a")
    first, second = take(memory, a), take(memory, a)
    wanted = memory.acquire(shelf.adapter("b"))
    later = memory.acquire(a)
    assert waits(wanted)
    assert waits(later)
    first.release()
    assert waits(wanted)
    second.release()
    got = wanted.result(10)
    assert waits(later)
    got.release()
    assert later.result(10).adapter.key == "a"
    assert shelf.loaded == ["a", "b", "a"]


def test_only_those_that_must_leave_are_held_back(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    a, b = shelf.adapter("a"), shelf.adapter("b")
    held = [take(memory, a), take(memory, b)]
    wanted = memory.acquire(shelf.adapter("c"))
    assert waits(wanted)
    assert not waits(memory.acquire(b)), "b was used last; a leaves for c"
    assert waits(memory.acquire(a))
    held[0].release()
    assert wanted.result(10).adapter.key == "c"


def test_a_pinned_one_stays(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    use(memory, shelf.adapter("a"))
    memory.pin({"a"})
    for key in "bcd":
        use(memory, shelf.adapter(key))
    assert shelf.in_memory() == ["a", "d"]
    memory.pin({"a", "d"})
    with pytest.raises(UnavailableError, match="pinned"):
        take(memory, shelf.adapter("e"))
    memory.pin(())
    use(memory, shelf.adapter("e"))
    assert shelf.in_memory() == ["d", "e"]


def test_one_that_can_never_fit_is_refused_at_once(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    with pytest.raises(AdapterError, match="raise --adapter-memory-gib"):
        memory.acquire(shelf.adapter("a", SIZE + 1))
    assert shelf.loaded == []


def test_a_load_that_fails_fails_those_who_wait_for_it_and_no_others(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    shelf.gate.clear()
    bad = shelf.adapter("bad", fail=ValueError("broken"))
    futures = [memory.acquire(bad), memory.acquire(bad), memory.acquire(shelf.adapter("a"))]
    shelf.gate.set()
    for future in futures[:2]:
        with pytest.raises(ValueError, match="broken"):
            future.result(10)
    assert futures[2].result(10).adapter.key == "a"
    assert shelf.loaded == ["bad", "a"], "two who wait for one load it once"
    assert memory.stats.used == SIZE


def test_a_retired_one_lives_until_its_last_lease_and_is_loaded_anew(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    a = shelf.adapter("a")
    old = take(memory, a)
    memory.retire("a")
    assert memory.draining() == {"a": 1}
    assert memory.presence("a").leases == 1
    new = take(memory, a)
    assert new.adapter is not old.adapter
    assert memory.stats.used == 2 * SIZE, "both count as long as both are there"
    old.release()
    del old
    assert memory.stats.used == SIZE
    assert memory.draining() == {}
    assert shelf.in_memory() == ["a"]


def test_a_retired_load_is_dropped_when_it_arrives(shelf: Shelf) -> None:
    memory = AdapterMemory(2 * SIZE)
    shelf.gate.clear()
    future = memory.acquire(shelf.adapter("a"))
    memory.retire("a")
    shelf.gate.set()
    future.result(10).release()
    until(lambda: memory.stats.used == SIZE)
    assert len(shelf.in_memory()) == 1


def test_who_left_while_waiting_is_given_nothing(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    held = take(memory, shelf.adapter("a"))
    gone, there = memory.acquire(shelf.adapter("b")), memory.acquire(shelf.adapter("c"))
    assert gone.cancel()
    held.release()
    assert there.result(10).adapter.key == "c"
    assert shelf.loaded == ["a", "c"]


def test_a_lease_that_is_dropped_is_a_lease_released(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    take(memory, shelf.adapter("a"))
    gc.collect()
    use(memory, shelf.adapter("b"))
    assert memory.presence("b").leases == 0


def test_shares_count_each_and_releasing_twice_counts_once(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    first = take(memory, shelf.adapter("a"))
    second = first.share()
    first.release()
    first.release()
    assert memory.presence("a").leases == 1
    second.release()
    assert memory.presence("a").leases == 0


def test_too_many_who_wait_are_told_to_come_back(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE, max_waiting=2)
    a = shelf.adapter("a")
    held = take(memory, a)
    waiting = [memory.acquire(shelf.adapter(key)) for key in "bc"]
    with pytest.raises(OverloadedError) as refusal:
        memory.acquire(shelf.adapter("d"))
    assert refusal.value.retry_after > 0
    held.release()
    for future in waiting:
        future.result(10).release()


def test_any_crowd_gets_what_it_asked_for_within_the_bound(shelf: Shelf) -> None:
    """Eight threads, twelve adapters, room for three: everyone is served, and the bound holds at every moment."""
    memory = AdapterMemory(3 * SIZE)
    adapters = [shelf.adapter(f"{i}") for i in range(12)]
    wrong: list[str] = []

    def crowd(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            wanted = chance.choice(adapters)
            lease = memory.acquire(wanted).result(20)
            if lease.adapter.key != wanted.key:
                wrong.append(f"{lease.adapter.key} for {wanted.key}")
            if memory.stats.used > memory.capacity:
                wrong.append("over the bound")
            shared = lease.share() if chance.random() < 0.3 else None
            if chance.random() < 0.1:
                memory.retire(wanted.key)
            lease.release()
            if shared is not None:
                shared.release()

    threads = [threading.Thread(target=crowd, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for ever"
    assert wrong == []
    assert memory.stats.used <= memory.capacity
    assert memory.stats.evictions > 0


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed here is freed because nothing refers to it, and not because the collector came by."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
def test_what_left_is_freed_whoever_still_has_a_released_lease(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    first = take(memory, shelf.adapter("a"))
    second = first.share()
    first.release()
    second.release()
    use(memory, shelf.adapter("b"))
    assert [ref() is None for ref in shelf.alive] == [True, False]
    with pytest.raises(AssertionError, match="released"):
        _ = first.adapter


@pytest.mark.usefixtures("no_collector")
def test_a_load_that_fails_keeps_nothing_of_what_it_read(shelf: Shelf) -> None:
    memory = AdapterMemory(SIZE)
    read: list[weakref.ref[Content]] = []

    def load() -> Weights:
        content = Content(SIZE)
        read.append(weakref.ref(content))
        try:
            raise ValueError("broken")
        except ValueError:
            raise UnavailableError("it cannot be loaded") from None

    with pytest.raises(UnavailableError):
        use(memory, Loadable("a", SIZE, load))
    assert [ref() for ref in read] == [None]
