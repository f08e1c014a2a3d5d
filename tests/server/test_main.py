from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from server import loading, serving
from server.api.service import Loaded, Service
from server.settings import Settings
from tests.server.fakes import FakeCatalogue


def test_a_dead_engine_ends_the_process_so_that_any_supervisor_sees_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = SimpleNamespace(failure=None, start=lambda: None, stop=lambda: None)
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            engine.failure = RuntimeError()

    monkeypatch.setattr(loading, "load_here", lambda _: (Loaded(engine, FakeCatalogue()), look))  # type: ignore[arg-type]
    service = Service(max_choices=1, keepalive_seconds=1)
    stopped = threading.Event()
    settings = Settings(model="m", adapter_poll_seconds=0.01)
    serving._load_and_watch(settings, service, threading.Event(), stopped.set)
    assert stopped.is_set()
    assert len(looks) == 3
    assert service.status == "failed"
