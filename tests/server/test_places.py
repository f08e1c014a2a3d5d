"""Open connections are bounded: idle ones make room, a crowd of busy ones is told so, and operators always get in."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from server import open_files
from server.api.places import SPARE, Places
from server.errors import StartupError
from server.open_files import DEFAULT_CONNECTIONS, OTHER_FILES, connection_limit
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running, until


class Guest:
    def __init__(self, idle_since: float | None) -> None:
        self.idle_since = idle_since
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_the_one_that_has_waited_longest_makes_room() -> None:
    places = Places(3, clock=lambda: 100.0)
    busy, long, short = Guest(None), Guest(10.0), Guest(90.0)
    newcomer = Guest(100.0)
    assert all(places.enter(guest) for guest in (busy, long, short, newcomer))
    assert [guest.is_closed for guest in (busy, long, short)] == [False, True, False]
    assert places.may_ask(newcomer)
    assert (places.open, places.closed, places.cut) == (3, 1, 0)


def test_who_has_just_come_is_not_closed_for_the_next() -> None:
    """Else a flood of connections would throw out every caller before its request arrives."""
    places = Places(1, spare=1, clock=lambda: 100.0)
    first, second, third = Guest(99.95), Guest(99.95), Guest(99.95)
    assert places.enter(first)
    assert places.enter(second)
    assert not places.may_ask(second)
    assert not places.enter(third)
    assert not first.is_closed
    assert not second.is_closed
    assert places.cut == 1


def test_there_are_never_more_than_the_limit_and_the_spare_ones() -> None:
    places = Places(4, spare=2, clock=lambda: 100.0)
    guests = [Guest(None if n % 3 else 0.0) for n in range(100)]
    inside = [guest for guest in guests if places.enter(guest)]
    assert places.open == 6
    assert sum(not guest.is_closed for guest in inside) == 6
    for guest in guests:
        places.leave(guest)
    assert places.open == 0


def test_a_place_that_becomes_free_is_for_whoever_waits_with_a_connection() -> None:
    places = Places(1, clock=lambda: 100.0)
    first, second = Guest(None), Guest(None)
    assert places.enter(first)
    assert places.enter(second)
    assert not places.may_ask(second)
    places.leave(first)
    assert places.may_ask(second)
    assert not places.may_ask(first) or places.open == 1


@contextmanager
def crowded(limit: int) -> Iterator[tuple[Running, FakeEngine, Places]]:
    """A server whose places are all taken by answers that are not finished before the gate opens."""
    engine = FakeEngine()
    engine.gate.clear()
    places = Places(limit)
    with running(engine, places=places) as server, ExitStack() as stack:
        stack.callback(engine.gate.set)
        for _ in range(limit):
            client = stack.enter_context(httpx.Client(base_url=server.http.base_url, timeout=30))
            asked = client.build_request("POST", CHAT, json=body("hello", stream=True))
            stack.callback(client.send(asked, stream=True).close)
        yield server, engine, places


def test_a_crowd_is_told_so_and_operators_get_in() -> None:
    with crowded(3) as (server, engine, places):
        refused = server.http.post(CHAT, json=body("hello"))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.http.get("/v1/models").status_code == 503
        for path in ("/health", "/ready", "/metrics"):
            assert server.http.get(path).status_code == 200
        assert server.metric("lorachat_connections") == places.open == 4
        assert server.metric("lorachat_connections_limit") == 3
        rejected = 'lorachat_requests_rejected_total{code="too_many_connections",status="503"}'
        assert server.metric(rejected) == 2
        engine.gate.set()
        until(lambda: engine.running == 0)
        # The same connection, which was refused before.
        until(lambda: server.http.post(CHAT, json=body("hello")).status_code == 200)


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_connections_that_ask_for_nothing_keep_nobody_out(said: bytes) -> None:
    # For this clock they have all been waiting for long.
    places = Places(4, spare=2, clock=lambda: time.monotonic() + 100)
    with running(places=places) as server, ExitStack() as stack:
        url = server.http.base_url
        assert url.port is not None
        for _ in range(30):
            idle = stack.enter_context(socket.create_connection((url.host, url.port)))
            idle.sendall(said)
        until(lambda: places.closed >= 20)
        assert server.http.post(CHAT, json=body("hello")).status_code == 200
        assert places.open <= 6


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """[soft, hard] limits of open files that the code sees and sets."""
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    return limits


def test_the_limit_of_open_files_is_raised_where_it_is_too_low(
    files: list[tuple[int, int]],
) -> None:
    assert connection_limit(None) == DEFAULT_CONNECTIONS
    assert files == [(1024, 4096)]
    assert connection_limit(2000) == 2000
    assert files[-1] == (2000 + SPARE + OTHER_FILES, 4096)


def test_more_connections_than_files_are_fewer_by_default_and_refused_if_asked_for(
    files: list[tuple[int, int]],
) -> None:
    files[:] = [(400, 400)]
    assert connection_limit(None) == 400 - SPARE - OTHER_FILES
    with pytest.raises(StartupError, match=r"100 connections take 420 open files.*LimitNOFILE"):
        connection_limit(100)
    files[:] = [(256, 256)]
    with pytest.raises(StartupError, match="raise the limit"):
        open_files.connection_limit(None)
