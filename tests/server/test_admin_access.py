"""Who gets to the admin routes: by an admin key, or by a port that only this machine reaches; nobody else."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI

from server.api.admin_access import require_admin
from server.api.app import create_app
from server.api.drain import AdminAddress, DrainingServer
from server.api.keys import Keyring, environment_keys
from server.api.policy import AdminPort, Policy
from server.api.service import Service
from server.door import policy_of
from server.errors import StartupError
from server.settings import Settings
from tests.conftest import ROOT
from tests.server.live import run_in_thread

THING = "/admin/thing"
# The second one is vLLM's, and real: whoever is let in is told what the empty body lacks.
ROUTES = {THING: 200, "/v1/load_lora_adapter": 400}


def with_admin_route(app: FastAPI) -> FastAPI:
    app.add_api_route(
        THING, lambda: {"done": True}, dependencies=[Depends(require_admin)], methods=["POST"]
    )
    return app


@contextmanager
def serving(
    *, api_keys: tuple[str, ...] = (), admin_key: str | None = None, port: bool = False,
    takes_metrics: bool = False,
) -> Iterator[tuple[httpx.Client, httpx.Client]]:  # fmt: skip
    """Clients of the public and of the admin port (of the public one again where there is no other)."""
    admin_port = AdminPort(takes_metrics=takes_metrics) if port else None
    policy = Policy(Keyring(environment_keys(api_keys, admin_key)), admin_port=admin_port)
    app = with_admin_route(create_app(Service(max_choices=4, keepalive_seconds=15), policy))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None)
    admin = AdminAddress("127.0.0.1", 0, admin_port) if admin_port else None
    server = DrainingServer(config, 1, lambda: None, lambda: None, admin)
    with run_in_thread(server) as url:
        other = f"http://127.0.0.1:{admin_port.number}" if admin_port else url
        with httpx.Client(base_url=url) as public, httpx.Client(base_url=other) as private:
            yield public, private


def statuses(http: httpx.Client, key: str | None = None, **headers: str) -> set[int]:
    """What the doors answer; 200 if one lets the caller in."""
    if key:
        headers["x-api-key"] = key
    answers = {path: http.post(path, headers=headers).status_code for path in ROUTES}
    return {200 if status == ROUTES[path] else status for path, status in answers.items()}


def test_without_a_key_or_a_port_administration_is_closed_and_says_how_to_open_it() -> None:
    with serving() as (http, _):
        assert statuses(http) == {403}
        error = http.post(THING).json()["error"]
        assert "LORACHAT_ADMIN_KEY" in error["message"]
        assert "--admin-port" in error["message"]
    with serving(api_keys=("user",)) as (http, _):
        assert statuses(http) == {401}
        assert statuses(http, "user") == {403}


def test_an_admin_key_opens_it_and_no_other_does() -> None:
    with serving(api_keys=("user",), admin_key="chief") as (http, _):
        assert statuses(http, "chief") == {200}
        assert statuses(http, "user") == {403}
        assert statuses(http, "chie") == statuses(http) == {401}
    with serving(admin_key="chief") as (http, _):
        assert statuses(http) == {403}, (
            "nobody else is asked for a key; administration is no less closed"
        )
        assert statuses(http, "chief") == {200}


def test_a_port_of_its_own_is_the_only_one() -> None:
    with serving(api_keys=("user",), admin_key="chief", port=True) as (public, private):
        assert statuses(public, "chief") == {404}
        missing = public.post("/nothing", headers={"x-api-key": "chief"})
        hidden = public.post(THING, headers={"x-api-key": "chief"})
        assert hidden.text.replace(THING, "/nothing") == missing.text
        assert statuses(private, "chief") == {200}
        assert statuses(private, "user") == {403}
        assert statuses(private) == {401}
        # A header decides nothing about the port.
        host = str(private.base_url.netloc.decode())
        assert statuses(public, "chief", host=host) == {404}
        for path in ("/v1/models", "/v1/chat/completions", "/docs", "/openapi.json"):
            assert private.get(path, headers={"x-api-key": "chief"}).status_code == 404
        assert private.get("/health").status_code == 200
        assert private.get("/metrics", headers={"x-api-key": "user"}).status_code == 200


def test_at_a_port_of_this_machine_no_key_is_needed_but_pages_of_browsers_are_kept_out() -> None:
    with serving(api_keys=("user",), port=True) as (public, private):
        assert statuses(private) == {200}
        assert private.get("/metrics").status_code == 200
        assert statuses(private, origin="https://evil.example") == {403}
        assert statuses(private, host="evil.example") == {403}
        assert statuses(public, "user") == {404}


def test_metrics_can_be_kept_to_the_admin_port() -> None:
    with serving(port=True, takes_metrics=True) as (public, private):
        assert public.get("/metrics").status_code == 404
        assert private.get("/metrics").status_code == 200


def settings(**given: Any) -> Settings:
    return Settings(model="m", **given)


def test_an_admin_port_that_other_machines_reach_needs_an_admin_key(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(StartupError, match="LORACHAT_ADMIN_KEY"):
        policy_of(settings(admin_port=8001, admin_host="0.0.0.0"))
    policy_of(settings(admin_port=8001, admin_host="0.0.0.0", admin_key="chief"))
    policy_of(settings(admin_port=8001))
    assert "anyone who reaches it" not in caplog.text
    policy_of(settings(host="0.0.0.0", admin_key="chief"))
    assert "anyone who reaches it can use it" in caplog.text
    caplog.clear()
    policy_of(settings(host="0.0.0.0", api_keys="user"))
    assert caplog.text == ""


def test_settings_that_contradict_each_other_are_one_line_without_the_key() -> None:
    for arguments, words in (
        (["--port", "8001", "--admin-port", "8001"], "must differ"),
        (["--api-keys", "same-key,other", "--admin-key", "same-key"], "LORACHAT_ADMIN_KEY"),
        (["--api-keys", "schlüssel"], "ASCII"),
        (["--api-key-file", "/no/such/file"], "/no/such/file cannot be read"),
    ):
        result = subprocess.run(
            [sys.executable, "-m", "server", "--model", "m", *arguments],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert words in result.stderr
        assert "same-key" not in result.stderr
        assert "schl" not in result.stderr


def test_an_admin_port_that_is_taken_ends_the_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = uvicorn.Config(FastAPI(), host="127.0.0.1", port=0, log_config=None)
        address = AdminAddress("127.0.0.1", taken.getsockname()[1], AdminPort())
        server = DrainingServer(config, 1, lambda: None, lambda: None, address)
        server.run()
    assert server.has_failed
