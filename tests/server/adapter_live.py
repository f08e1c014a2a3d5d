"""The HTTP surface on a real socket, with a real engine, a real volume and a bound on the memory of adapters."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.api.app import create_app
from server.api.keys import Keyring, environment_keys
from server.api.policy import Policy
from server.api.service import Loaded, Service
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from server.model.adapter_desk import AdapterDesk
from server.model.adapter_memory import AdapterMemory
from server.model.backend import make_backend
from server.model.catalogue import VolumeCatalogue
from server.model.checked_cache import CheckedCache
from server.model.config import DecoderConfig
from server.model.digest import weights_digest
from server.model.loader import load_base
from server.model.lora import Ranks
from server.model.score import score
from server.native.build import build
from tests.models import LINEAR, write_manifest
from tests.server.live import serve

CHAT = "/v1/chat/completions"
OPERATOR = "operators-key"


@dataclass
class Admin:
    """A server, its client and its volume."""

    http: httpx.Client
    root: Path
    desk: AdapterDesk
    engine: Engine
    digest: str
    adapters: Path

    def publish(self, name: str, version: str, seed: int = 1) -> Path:
        folder = self.root / name / version
        shutil.copytree(self.adapters / str(seed), folder)
        write_manifest(folder, weights_digest=self.digest)
        return folder

    def rows(self) -> dict[str, dict[str, Any]]:
        response = self.http.get("/admin/adapters")
        assert response.status_code == 200, response.text
        return {row["id"]: row for row in response.json()["data"]}

    def act(self, name: str, action: str) -> httpx.Response:
        return self.http.post(f"/admin/adapters/{name}/{action}")

    def chat(self, model: str, max_tokens: int = 8, **fields: Any) -> httpx.Response:
        message = {"role": "user", "content": "hello"}
        return self.http.post(
            CHAT,
            json={"model": model, "messages": [message], "max_tokens": max_tokens,
                  "temperature": 0, "ignore_eos": True, **fields},
        )  # fmt: skip

    def models(self) -> list[str]:
        return [model["id"] for model in self.http.get("/v1/models").json()["data"]]

    def metric(self, name: str) -> float:
        for line in self.http.get("/metrics").text.splitlines():
            if line.rpartition(" ")[0] == name:
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no {name}")


@contextmanager
def administered(
    model: Path,
    adapters: Path,
    root: Path,
    *,
    room: int | None = None,
    rank: int = 4,
    modules: tuple[str, ...] = tuple(LINEAR),
    cache: Path | None = None,
    threads: int = 1,
    api_keys: Sequence[str] = (),
    admin_key: str | None = OPERATOR,
) -> Iterator[Admin]:
    """room: how many adapters of that rank and on those modules the memory has room for. The client is the operator."""
    build()
    base = load_base(str(model))
    runner = make_backend(base, "auto", lambda _: 2**27, threads=threads).runner
    digest = weights_digest(base.checkpoint)
    engine = Engine(runner, Limits(4, 64), max_context=256, max_waiting=100)
    engine.start()
    size = runner.adapter_bytes(ranks_of(base.config, rank, modules))
    memory = AdapterMemory(2**40 if room is None else room * size + size // 2)
    catalogue = VolumeCatalogue(
        base,
        root,
        weights_digest=digest,
        max_context=256,
        created=1,
        memory=memory,
        packer=runner,
        score=lambda adapter, ids: engine.between_steps(lambda: score(runner, adapter, ids)).result(
            60
        ),
        cache=None if cache is None else CheckedCache(cache, digest),
    )
    desk = AdapterDesk(catalogue)
    service = Service(max_choices=4, keepalive_seconds=15)
    service.set_loaded(Loaded(engine, catalogue, adapters=desk))
    policy = Policy(Keyring(environment_keys(api_keys, admin_key)))
    headers = {"x-api-key": OPERATOR}
    with (
        serve(create_app(service, policy)) as url,
        httpx.Client(base_url=url, timeout=120, headers=headers) as http,
    ):
        yield Admin(http, root, desk, engine, digest, adapters)
    engine.stop()


def ranks_of(config: DecoderConfig, rank: int, modules: tuple[str, ...]) -> Ranks:
    return {(layer, module): rank for layer in range(config.num_layers) for module in modules}
