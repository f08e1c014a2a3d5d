"""The bodies of the operator's routes: ours, and vLLM's for loading and unloading adapters."""

from __future__ import annotations

from typing import Literal

from server.api.schemas.bodies import Shown
from server.api.schemas.fields import Wire
from server.api.schemas.parse import NotHonoured

NOT_HONOURED: NotHonoured = {"lora_int_id": (), "is_3d_lora_weight": (False,)}


class LoadAdapterRequest(Wire):
    """lora_path: where lora_name lies under the adapters folder; another path is refused. load_inplace: check anew."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False


class UnloadAdapterRequest(Wire):
    lora_name: str


class AdapterBody(Shown):
    """One version. bytes: of memory, at most. since: of a refusal or unloading. Times are Unix seconds."""

    id: str
    name: str
    version: str
    state: Literal["serving", "loaded", "pinned", "available", "draining", "unloaded", "refused"]
    latest: bool
    pinned: bool
    signed: bool
    reason: str | None
    since: float | None
    base: str | None
    digest: str | None
    rank: int | None
    bytes: int | None
    created: int | None
    last_used: float | None
    requests_running: int
    probe: str | None


class AdapterMemoryBody(Shown):
    """used, limit: bytes. adapters: how many are in memory. waiting: requests that wait for one."""

    used: int
    limit: int
    adapters: int
    waiting: int
    loads: int
    evictions: int


class AdapterList(Shown):
    object: Literal["list"] = "list"
    data: list[AdapterBody]
    memory: AdapterMemoryBody
