"""What an operator asks about adapters and does with them: /admin/adapters, and vLLM's two routes for the same.

Names are looked up under the adapters folder and never used as a path.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response

from server.adapter_types import AdapterInfo
from server.api.admin_access import require_admin
from server.api.openapi import documented
from server.api.routes.respond import read_body
from server.api.schemas.admin import (
    NOT_HONOURED,
    AdapterBody,
    AdapterList,
    AdapterMemoryBody,
    LoadAdapterRequest,
    UnloadAdapterRequest,
)
from server.api.service import Service
from server.errors import InvalidRequestError

# Ways to be served: everything else is out of service.
OUT = ("refused", "unloaded", "draining")


def admin_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Admin"], dependencies=[Depends(require_admin)])

    def listed(rows: Sequence[AdapterInfo]) -> AdapterList:
        stats = service.adapters.stats
        return AdapterList(
            data=[AdapterBody(**asdict(row)) for row in rows],
            memory=AdapterMemoryBody(
                used=stats.bytes_used,
                limit=stats.bytes_limit,
                adapters=stats.resident,
                waiting=stats.waiting,
                loads=stats.loads,
                evictions=stats.evictions,
            ),
        )

    @router.get("/admin/adapters", **documented(None, AdapterList))
    def list_adapters() -> AdapterList:
        """Every version on the volume: served or not, and why not."""
        return listed(service.adapters.describe())

    # Plain functions: they may wait for a disk, or for an adapter to be checked, and then do so in a thread.
    @router.post("/admin/adapters/{name}/reload", **documented(None, AdapterList, not_found=True))
    def reload_adapter(name: str) -> AdapterList:
        """Look at the volume now, and check NAME's versions, or NAME@VERSION, as if they were new."""
        return listed(service.adapters.reload(name))

    @router.post("/admin/adapters/{name}/unload", **documented(None, AdapterList, not_found=True))
    def unload_adapter(name: str) -> AdapterList:
        """Serve these no more until a reload, though they stay on the volume. Running answers finish."""
        return listed(service.adapters.unload(name))

    @router.post("/admin/adapters/{name}/pin", **documented(None, AdapterList, not_found=True))
    def pin_adapter(name: str) -> AdapterList:
        """Keep what NAME stands for in memory, also when that changes, or NAME@VERSION. 409 if it does not fit."""
        return listed(service.adapters.pin(name))

    @router.post("/admin/adapters/{name}/unpin", **documented(None, AdapterList, not_found=True))
    def unpin_adapter(name: str) -> AdapterList:
        """Let it leave the memory again when others need the room."""
        return listed(service.adapters.unpin(name))

    @router.post("/v1/load_lora_adapter", **documented(LoadAdapterRequest, None))
    async def load_lora_adapter(request: Request) -> Response:
        """vLLM's: serve an adapter that lies on the volume. One that is served already is no error."""
        asked = await read_body(request, service, LoadAdapterRequest, NOT_HONOURED)
        name = asked.lora_name
        await asyncio.to_thread(_load, service, asked)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", **documented(UnloadAdapterRequest, None))
    async def unload_lora_adapter(request: Request) -> Response:
        """vLLM's: the same as /admin/adapters/NAME/unload."""
        asked = await read_body(request, service, UnloadAdapterRequest, NOT_HONOURED)
        name = asked.lora_name
        await asyncio.to_thread(service.adapters.unload, name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return router


def _load(service: Service, asked: LoadAdapterRequest) -> None:
    """Raises InvalidRequestError or ModelNotFoundError unless it is served then."""
    adapters, name = service.adapters, asked.lora_name
    if not adapters.is_at(name, asked.lora_path):
        raise InvalidRequestError(
            f"'lora_path': this server loads adapters from its own adapters folder only, by name; '{name}' is not at"
            " that path. Publish it there, and send its folder, or the name itself, as 'lora_path'.",
            param="lora_path",
        )
    if not asked.load_inplace and _is_served(adapters.describe, name):
        return
    rows = adapters.reload(name)
    if all(row.state in OUT for row in rows):
        reasons = "; ".join(f"{row.id}: {row.reason}" for row in rows if row.reason)
        raise InvalidRequestError(f"The adapter '{name}' is refused: {reasons}.", param="lora_name")


def _is_served(describe: Callable[[], Sequence[AdapterInfo]], name: str) -> bool:
    return any(name in (row.id, row.name) and row.state not in OUT for row in describe())
