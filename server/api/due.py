"""When a request must be done, and what is said if it is not."""

from __future__ import annotations

import asyncio
import time

from server.adapter_types import AdapterLease
from server.api.caller import Caller
from server.api.service import Service
from server.errors import DeadlineError
from server.types import ServedModel


def deadline_of(caller: Caller, begun: float) -> float | None:
    """In the event loop's time; None without a limit. begun: when the request came, as time.perf_counter() gives it."""
    if caller.timeout_seconds is None:
        return None
    return asyncio.get_running_loop().time() + caller.timeout_seconds - time.perf_counter() + begun


def missed() -> DeadlineError:
    return DeadlineError(
        "The request was not finished within its time. It is the server's limit, or less if the header"
        " 'x-request-timeout' says so."
    )


async def lease_in_time(
    service: Service, model: ServedModel, deadline: float | None
) -> AdapterLease | None:
    """service.lease(model): it may wait until others' answers end. Raises DeadlineError too."""
    try:
        async with asyncio.timeout_at(deadline):
            return await service.lease(model)
    except TimeoutError:
        raise missed() from None
