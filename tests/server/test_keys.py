"""API keys: from the environment or a file that is read again; each with its models; never in a log or an answer."""

from __future__ import annotations

import logging
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from server.api import keys as keys_module
from server.api.key_file import MAX_BYTES, KeyFile
from server.api.keys import Keyring, digest_of, environment_keys, new_key
from server.api.new_key import make_key
from server.api.request_log import RequestLog
from server.errors import KeyFileError
from server.log_format import FORMATTERS
from server.types import ModelInfo
from tests.conftest import ROOT
from tests.server.api_fakes import FakeCatalogue, FakeModel
from tests.server.api_live import Running, body, running


def entry(name: str, key: str, *more: str) -> str:
    return "\n".join(
        ["[[key]]", f'name = "{name}"', f'sha256 = "{digest_of(key).hex()}"', *more, ""]
    )


class Catalogue(FakeCatalogue):
    """base; pirate in two versions, the latest is the second; poet in one."""

    def find(self, name: str) -> FakeModel:
        full = {"pirate": "pirate@2", "poet": "poet@1"}.get(name, name)
        if full in ("base", "pirate@1", "pirate@2", "poet@1"):
            return FakeModel(id=full)
        return super().find(name)

    def list(self) -> list[ModelInfo]:
        ids = ("base", "pirate", "poet", "pirate@1", "pirate@2", "poet@1")
        return [ModelInfo(i, "fake", None, 1) for i in ids]


def names(file: KeyFile) -> list[str]:
    return [key.name for key in file.keys()]  # noqa: SIM118 - no dictionary


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_is_found_and_every_one_is_compared_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyring = Keyring(environment_keys(["one", "two", "three"], "chief"))
    compared: list[tuple[bytes, bytes]] = []
    real = keys_module.hmac.compare_digest

    def spy(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", spy)
    for credential, name in (
        ("one", "env-1"),
        ("three", "env-3"),
        ("chief", "admin"),
        ("on", None),
    ):
        compared.clear()
        found = keyring.find(credential)
        assert (found and found.name) == name
        assert len(compared) == 4, "the first match must not end the search"
        assert {len(part) for pair in compared for part in pair} == {32}


def test_an_admin_key_alone_asks_nobody_else_for_a_key_and_an_empty_file_asks_everybody() -> None:
    assert Keyring(environment_keys([], "chief")).is_open
    assert not Keyring(environment_keys(["one"], None)).is_open
    assert not Keyring((), lambda: ()).is_open


def test_a_new_key_is_shown_once_and_its_table_opens_the_door(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "server", "key", "phone"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = made.stderr.split()[-1]
    assert key not in made.stdout
    path = tmp_path / "keys.toml"
    path.write_text(made.stdout)
    keyring = Keyring((), KeyFile(path).keys)
    found = keyring.find(key)
    assert found is not None
    assert (found.name, found.is_admin, found.models) == ("phone", False, None)
    assert len(new_key()) > 40
    assert new_key() != new_key()
    assert tomllib.loads(make_key("x", is_admin=True).table)["key"][0]["admin"] is True


def test_a_name_that_the_file_would_not_take_is_refused_where_the_key_is_made() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "server", "key", 'x"\nadmin = true'],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 2
    assert made.stdout == ""


SECRET = "lorachat-this-is-a-key-in-the-wrong-place"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[key]]\nname = 1\nsha256 = 2\n", "key number 1"),
        (entry("a", "x") + entry("a", "y"), "two keys are named 'a'"),
        (entry("a", "x") + entry("b", "x"), "'a' and 'b' are one key"),
        (entry("a", "x", "model = 'base'"), "key number 1 'model': there is no such field"),
        (entry("a", "x", "models = []"), "key number 1 'models'"),
        (entry("a", "x", "requests_per_minute = 0"), "key number 1 'requests_per_minute'"),
        (entry("a", "x", "admin = 'yes'"), "key number 1 'admin'"),
        (entry("env-1", "x"), "from the environment"),
        (entry("admin", "x"), "from the environment"),
        (entry("a/b", "x"), "key number 1 'name'"),
        (f'[[key]]\nname = "a"\nsha256 = "{SECRET}"\n', "64 hexadecimal digits"),
        ('[[key]]\nname = "a"\n', "key number 1 'sha256': is required"),
        (f"{SECRET}\n", "is not TOML (at line 1"),
        (f'[[key]]\nname = "{SECRET}\n', "is not TOML (at line 2"),
        ("keys = []\n", "'keys': there is no such field"),
        ("#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_is_not_to_the_letter_is_refused_without_quoting_it(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(KeyFileError) as refusal:
        KeyFile(path)
    assert words in str(refusal.value)
    assert SECRET not in str(refusal.value)


def test_a_key_taken_out_of_the_file_is_refused_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", "first") + entry("b", "second"))
    file = KeyFile(path)
    with running(keyring=Keyring((), file.keys)) as server:
        assert server.http.get("/v1/models", headers=bearer("second")).status_code == 200
        path.write_text(entry("a", "first") + entry("c", "third"))
        file.refresh()
        statuses = [
            server.http.get("/v1/models", headers=bearer(key)).status_code
            for key in ("first", "second", "third")
        ]
        assert statuses == [200, 401, 200]
        path.write_text("")
        file.refresh()
        assert server.http.get("/v1/models", headers=bearer("first")).status_code == 401
        assert server.http.get("/v1/models").status_code == 401, "no keys must not mean no door"


@pytest.mark.parametrize("damage", ["truncated", "gone", "a folder", "binary"])
def test_a_broken_file_keeps_the_keys_that_were_read_and_says_so_once(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    good = entry("a", "first")
    path.write_text(good)
    file = KeyFile(path)
    if damage == "truncated":
        path.write_text(good[: len(good) // 2])
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    else:
        path.unlink()
        if damage == "a folder":
            path.mkdir()
    for _ in range(3):
        file.refresh()
    assert names(file) == ["a"]
    assert caplog.text.count("stay valid") == 1
    if damage == "a folder":
        path.rmdir()
    path.write_text(entry("b", "second"))
    file.refresh()
    assert names(file) == ["b"]


def test_reading_the_file_again_does_not_fill_anybodys_bucket(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(entry("a", "first", "requests_per_minute = 2"))
    file = KeyFile(path)
    file.keys()[0].quota.take_request()
    path.write_text(path.read_text() + entry("b", "second"))
    file.refresh()
    assert dict(file.keys()[0].quota.headers())[b"x-ratelimit-remaining-requests"] == b"1"
    path.write_text(entry("a", "first", "requests_per_minute = 9"))
    file.refresh()
    assert dict(file.keys()[0].quota.headers())[b"x-ratelimit-remaining-requests"] == b"9"


@pytest.fixture
def restricted(tmp_path: Path) -> Any:
    path = tmp_path / "keys.toml"
    path.write_text(
        entry("all", "all")
        + entry("sailor", "ahoy", 'models = ["pirate"]')
        + entry("pinned", "pin", 'models = ["pirate@1"]')
    )
    with running(keyring=Keyring((), KeyFile(path).keys), catalogue=Catalogue()) as server:
        yield server


def test_a_key_for_certain_models_sees_and_uses_only_these(restricted: Running) -> None:
    http = restricted.http

    def listed(key: str) -> list[str]:
        return [m["id"] for m in http.get("/v1/models", headers=bearer(key)).json()["data"]]

    assert len(listed("all")) == 6
    assert listed("ahoy") == ["pirate", "pirate@1", "pirate@2"]
    assert listed("pin") == ["pirate@1"]
    for key, allowed in (("ahoy", {"pirate", "pirate@1", "pirate@2"}), ("pin", {"pirate@1"})):
        for model in ("base", "pirate", "pirate@1", "pirate@2", "poet", "poet@1", "nothing"):
            calls = [
                http.post("/v1/chat/completions", json=body("x", model=model), headers=bearer(key)),
                http.post(
                    "/v1/completions", json={"model": model, "prompt": "x"}, headers=bearer(key)
                ),
                http.post(
                    "/v1/responses", json={"model": model, "input": "x"}, headers=bearer(key)
                ),
                http.post("/tokenize", json={"model": model, "prompt": "x"}, headers=bearer(key)),
                http.post("/detokenize", json={"model": model, "tokens": [3]}, headers=bearer(key)),
                http.get(f"/tokenizer_info?model={model}", headers=bearer(key)),
            ]
            assert {call.status_code for call in calls} == {200 if model in allowed else 404}
            if model in ("poet", "nothing"):
                error = calls[0].json()["error"]
                assert error["code"] == "model_not_found"
                assert error["message"].replace(model, "x").count("poet") == 0, "no list of others'"
    assert http.get("/metrics", headers=bearer("all")).status_code == 200
    assert http.get("/metrics", headers=bearer("ahoy")).status_code == 403


def test_no_key_is_ever_in_a_log_an_error_or_a_metric(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every way a key can come: right, wrong, in the wrong header, in the address, with a broken request."""
    caplog.set_level(logging.DEBUG)
    right, wrong, from_file, chief = (f"sk-{word}-0123456789abcdef" for word in
        ("right", "wrong", "file", "chief"))  # fmt: skip
    path = tmp_path / "keys.toml"
    path.write_text(entry("sailor", from_file, "requests_per_minute = 2"))
    keyring = Keyring(environment_keys([right], chief), KeyFile(path).keys)
    said = []
    with running(keyring=keyring, reporters=[RequestLog(with_content=True)]) as server:
        for key in (right, wrong, from_file, chief):
            for headers in (bearer(key), {"x-api-key": key}, {"authorization": f"Basic {key}"}):
                requests: list[dict[str, Any]] = [
                    {"json": body("x")},
                    {"json": body("x", stream=True)},
                    {"json": {"model": "nothing"}},
                    {"content": b"{"},
                ]
                said += [
                    server.http.post("/v1/chat/completions", headers=headers, **request)
                    for request in requests
                ]
                said.append(server.http.get("/admin/adapters", headers=headers))
                said.append(server.http.get("/v1/models/nothing", headers=headers))
        metrics = server.http.get("/metrics", headers=bearer(right)).text
    assert {200, 400, 401, 403, 404, 429} >= {r.status_code for r in said} >= {200, 401, 429}
    ours = [
        FORMATTERS[kind]().format(record)
        for record in caplog.records
        if record.name.startswith(("lorachat", "uvicorn"))
        for kind in FORMATTERS
    ]
    assert any("outcome=finished" in line for line in ours), "the log was on"
    everything = "\n".join([metrics, *ours, *(r.text + str(r.headers) for r in said)])
    for key in (right, wrong, from_file, chief):
        assert key not in everything
        assert key[3:] not in everything
        assert digest_of(key).hex()[:12] not in everything
