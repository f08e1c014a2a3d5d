"""The operator's routes over HTTP, on a real volume and a real engine with a tiny model."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.models import write_peft_adapter
from tests.server.adapter_live import CHAT, OPERATOR, Admin, administered

OLD, NEW = "20261123-080000-aaaaaa", "20261123-090000-bbbbbb"


@pytest.fixture(scope="session")
def two_adapters(tiny_model: Path, once: Callable[..., Path]) -> Path:
    def make(folder: Path) -> None:
        for seed in (1, 2):
            write_peft_adapter(tiny_model, folder / str(seed), seed=seed)

    return once("admin-adapters", make)


@pytest.fixture
def admin(tiny_model: Path, two_adapters: Path, tmp_path: Path) -> Iterator[Admin]:
    with administered(tiny_model, two_adapters, tmp_path / "adapters") as admin:
        yield admin


def test_the_list_has_every_version_and_why_one_is_refused(admin: Admin) -> None:
    assert admin.http.get("/admin/adapters").json()["data"] == []
    admin.publish("talk", OLD)
    bad = admin.publish("talk", NEW)
    (bad / "tokenizer.json").write_text("{}")
    admin.desk.refresh()
    rows = admin.rows()
    good, refused = rows[f"talk@{OLD}"], rows[f"talk@{NEW}"]
    assert (good["state"], good["latest"], good["rank"], good["requests_running"]) == (
        "loaded", True, 4, 0)  # fmt: skip
    assert good["bytes"] > 0
    assert good["digest"] == admin.http.get("/v1/models/talk").json()["digest"]
    assert refused["state"] == "refused"
    assert "tokenizer.json is not the file" in refused["reason"]
    assert refused["since"] > 1.7e9
    assert admin.metric('lorachat_adapters_refused{reason="digest"}') == 1
    assert admin.metric('lorachat_adapter_refusals_total{reason="digest"}') == 1
    assert admin.chat("talk").status_code == 200, "the others go on"
    shutil.rmtree(bad)
    admin.desk.refresh()
    assert admin.metric('lorachat_adapters_refused{reason="digest"}') == 0


def test_unload_and_reload(admin: Admin) -> None:
    admin.publish("talk", OLD)
    admin.desk.refresh()
    before = admin.chat("talk").json()["choices"]
    response = admin.act("talk", "unload")
    assert [row["state"] for row in response.json()["data"]] == ["unloaded"]
    admin.desk.refresh()
    assert admin.chat("talk").status_code == 404
    assert admin.models() == ["base"]
    assert admin.act("talk", "reload").json()["data"][0]["state"] == "loaded"
    assert admin.chat("talk").json()["choices"] == before


def test_streams_that_were_left_keep_no_adapter_in_memory(admin: Admin) -> None:
    """What they leave behind refers to itself and waits for the collector, for as long as that may take; weights must
    not, since others are loaded in their place."""
    admin.publish("talk", OLD)
    admin.desk.refresh()
    body = {"model": "talk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 200,
            "temperature": 0, "ignore_eos": True, "stream": True}  # fmt: skip
    gc.collect()
    gc.disable()
    try:
        lease = admin.desk.acquire(admin.desk._catalogue.find("talk")).result(10)
        weights = weakref.ref(lease.adapter)
        lease.release()
        for _ in range(3):
            with admin.http.stream("POST", CHAT, json=body) as stream:
                next(stream.iter_lines())
        assert admin.act("talk", "unload").status_code == 200
        deadline = time.monotonic() + 10
        while weights() is not None:
            assert time.monotonic() < deadline, gc.get_referrers(weights())
            time.sleep(0.01)
    finally:
        gc.enable()


def test_a_stream_ends_on_the_version_it_began_with(admin: Admin) -> None:
    """While it runs the version is unloaded and removed from the volume; not a token differs."""
    folder = admin.publish("talk", OLD)
    admin.desk.refresh()
    whole = admin.chat("talk", max_tokens=200).json()["choices"][0]["message"]["content"]
    text = ""
    body = {"model": "talk", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 200,
            "temperature": 0, "ignore_eos": True, "stream": True}  # fmt: skip
    with admin.http.stream("POST", CHAT, json=body) as stream:
        for number, line in enumerate(stream.iter_lines()):
            if number == 6:
                assert admin.act("talk", "unload").status_code == 200
                shutil.rmtree(folder)
                admin.desk.refresh()
            if line.startswith("data: {"):
                choices = json.loads(line[6:])["choices"]
                text += (choices[0]["delta"].get("content") or "") if choices else ""
    assert text == whole
    assert admin.rows() == {}
    assert admin.chat("talk").status_code == 404


def test_many_adapters_are_served_within_a_small_memory(
    tiny_model: Path, two_adapters: Path, tmp_path: Path
) -> None:
    """Twelve adapters of two kinds, room for two, eight callers at once: every answer is the right one."""
    with administered(tiny_model, two_adapters, tmp_path / "adapters", room=2) as admin:
        for number in range(12):
            admin.publish(f"a{number}", OLD, seed=1 + number % 2)
        admin.desk.refresh()
        right = [admin.chat(f"a{number}").json()["choices"] for number in (0, 1)]
        assert right[0] != right[1]
        with ThreadPoolExecutor(8) as callers:
            numbers = [n % 12 for n in range(0, 12 * 35, 7)]
            answers = list(callers.map(lambda n: admin.chat(f"a{n}"), numbers))
        for number, answer in zip(numbers, answers, strict=True):
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"] == right[number % 2]
        memory = admin.http.get("/admin/adapters").json()["memory"]
        assert memory["used"] <= memory["limit"]
        assert memory["adapters"] <= 2
        assert memory["evictions"] > 10
        assert memory["waiting"] == 0
        assert {row["requests_running"] for row in admin.rows().values()} == {0}
        assert admin.metric("lorachat_adapters_in_memory") == memory["adapters"]


def test_a_completion_of_several_prompts_needs_its_adapter_once(
    tiny_model: Path, two_adapters: Path, tmp_path: Path
) -> None:
    with administered(tiny_model, two_adapters, tmp_path / "adapters", room=1) as admin:
        for name in ("one", "two"):
            admin.publish(name, OLD)
        admin.desk.refresh()

        def complete(name: str) -> int:
            body = {"model": name, "prompt": ["a", "b", "c"], "max_tokens": 5, "n": 2}
            return admin.http.post("/v1/completions", json=body).status_code

        with ThreadPoolExecutor(4) as callers:
            assert set(callers.map(complete, ["one", "two"] * 6)) == {200}
        assert {row["requests_running"] for row in admin.rows().values()} == {0}


def test_pinning(tiny_model: Path, two_adapters: Path, tmp_path: Path) -> None:
    with administered(tiny_model, two_adapters, tmp_path / "adapters", room=1) as admin:
        for name in ("one", "two"):
            admin.publish(name, OLD)
        admin.desk.refresh()
        assert admin.act("one", "pin").json()["data"][0]["state"] == "pinned"
        refusal = admin.act("two", "pin")
        assert refusal.status_code == 409
        assert "unpin one" in refusal.json()["error"]["message"]
        away = admin.chat("two")
        assert away.status_code == 503
        assert "pinned" in away.json()["error"]["message"]
        assert admin.chat("one").status_code == 200
        assert admin.act("one", "unpin").status_code == 200
        assert admin.chat("two").status_code == 200


@pytest.mark.parametrize("action", ["reload", "unload", "pin", "unpin"])
@pytest.mark.parametrize(
    "name", ["nobody", "base", "..%2Ftalk", "%2Fetc", "talk%2F..", "talk@..", ".tmp-1", "%00"]
)
def test_only_names_are_taken(admin: Admin, action: str, name: str) -> None:
    admin.publish("talk", OLD)
    (admin.root / "talk" / ".tmp-1").mkdir()
    admin.desk.refresh()
    response = admin.act(name, action)
    assert response.status_code == 404
    assert response.json()["error"]["message"]
    assert admin.chat("talk").status_code == 200


def test_vllms_routes(admin: Admin) -> None:
    def load(name: str, path: object, **fields: Any) -> httpx.Response:
        body = {"lora_name": name, "lora_path": str(path), **fields}
        return admin.http.post("/v1/load_lora_adapter", json=body)

    def unload(name: str, **fields: Any) -> httpx.Response:
        return admin.http.post("/v1/unload_lora_adapter", json={"lora_name": name, **fields})

    admin.publish("talk", OLD)
    loaded = load("talk", admin.root / "talk")
    assert (loaded.status_code, loaded.text) == (
        200, "Success: LoRA adapter 'talk' added successfully.")  # fmt: skip
    assert load("talk", "talk").status_code == 200, "once more is no error"
    assert admin.chat("talk").status_code == 200
    gone = unload("talk")
    assert (gone.status_code, gone.text) == (
        200, "Success: LoRA adapter 'talk' removed successfully.")  # fmt: skip
    assert admin.chat("talk").status_code == 404
    assert load("talk", f"talk/{OLD}").status_code == 400, "NAME is not one of its versions"
    assert load(f"talk@{OLD}", f"talk/{OLD}", load_inplace=True).status_code == 200
    assert admin.chat("talk").status_code == 200
    assert unload("nobody").status_code == 404
    assert load("nobody", "nobody").status_code == 404
    assert unload("talk", lora_int_id=1).status_code == 400
    outside = admin.root.parent / "outside"
    shutil.copytree(admin.root / "talk" / OLD, outside)
    os.symlink(outside, admin.root / "sly")
    for name, path in (
        ("talk", outside), ("sly", "sly"), ("outside", "../outside"), ("talk", "/"),
        ("talk", "https://example.com/talk"), ("talk", "someone/talk"),
    ):  # fmt: skip
        refusal = load(name, path)
        assert refusal.status_code == 400, path
        assert refusal.json()["error"]["param"] == "lora_path"
        assert "its own adapters folder only" in refusal.json()["error"]["message"]
    (admin.publish("bad", OLD) / "manifest.json").write_text("{")
    refusal = load("bad", "bad")
    assert refusal.status_code == 400
    assert "manifest.json is not JSON" in refusal.json()["error"]["message"]
    for body in ({}, {"lora_name": "talk"}, {"lora_name": 1, "lora_path": "x"}):
        assert admin.http.post("/v1/load_lora_adapter", json=body).status_code == 400


ROUTES = [
    ("GET", "/admin/adapters"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
]
ROUTES += [
    ("POST", f"/admin/adapters/talk/{action}") for action in ("reload", "unload", "pin", "unpin")
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_keys_set_only_the_operator_gets_in(
    tiny_model: Path, two_adapters: Path, tmp_path: Path, method: str, path: str
) -> None:
    volume = tmp_path / "adapters"
    with administered(tiny_model, two_adapters, volume, api_keys=["user-key"]) as admin:
        for key, status in (("", 401), ("wrong", 401), ("user-key", 403)):
            answer = admin.http.request(method, path, headers={"x-api-key": key}, json={})
            assert answer.status_code == status
        operator = admin.http.request(method, path, headers={"x-api-key": OPERATOR}, json={})
        assert operator.status_code not in (401, 403)


def test_with_keys_and_no_admin_key_nobody_operates(
    tiny_model: Path, two_adapters: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "adapters"
    with administered(tiny_model, two_adapters, volume, api_keys=["k"], admin_key=None) as admin:
        answer = admin.http.get("/admin/adapters", headers={"x-api-key": "k"})
        assert answer.status_code == 403
        assert "LORACHAT_ADMIN_KEY" in answer.json()["error"]["message"]


def test_waiting_for_an_adapters_memory_has_the_requests_deadline(
    tiny_model: Path, two_adapters: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "adapters"
    with administered(tiny_model, two_adapters, volume, room=1) as admin:
        admin.publish("one", OLD, 1)
        admin.publish("two", NEW, 2)
        admin.desk.refresh()
        asked = {"model": "one", "messages": [{"role": "user", "content": "x"}], "max_tokens": 200,
                 "stream": True, "ignore_eos": True}  # fmt: skip
        with admin.http.stream("POST", CHAT, json=asked) as held:
            next(held.iter_lines())  # its adapter fills the memory now
            blocked = admin.engine.between_steps(lambda: time.sleep(2))
            late = admin.http.post(
                CHAT,
                json={**asked, "model": "two", "stream": False, "max_tokens": 2},
                headers={"x-request-timeout": "0.5"},
            )
            assert late.status_code == 504, late.text
            assert late.json()["error"]["code"] == "deadline_exceeded"
            assert not blocked.done(), "it was told while it waited"
            blocked.result(10)
        assert admin.chat("two", 2).status_code == 200, "it left nothing behind"
