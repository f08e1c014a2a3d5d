"""uvicorn that ends in order: after SIGTERM or Ctrl-C it refuses what is new, and answers what it has begun.

It goes on listening while it drains, so that a balancer reads "draining" at /ready and callers a 503 with Retry-After
instead of a refused connection. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

import uvicorn

from server.api.policy import AdminPort

log = logging.getLogger("lorachat.api")

LAST_WORDS_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """Where a second port is to be opened; told learns its number. connection: its class; None: the public port's."""

    host: str
    port: int
    told: AdminPort
    connection: type[asyncio.Protocol] | None = None


class DrainingServer(uvicorn.Server):
    """begin_drain is called at the first signal; end_drain drain_seconds later, from another thread, if answers still
    run then: time for what is left to be told. (uvicorn's own deadline would cut them in the middle of a chunk.)
    """

    def __init__(
        self,
        config: uvicorn.Config,
        drain_seconds: float,
        begin_drain: Callable[[], None],
        end_drain: Callable[[], None],
        admin: AdminAddress | None = None,
    ) -> None:
        super().__init__(config)
        self.has_failed = False  # to open the admin port
        self._drain_seconds = drain_seconds
        self._begin_drain = begin_drain
        self._end_drain = end_drain
        self._admin = admin
        self._is_draining = False
        self._is_drained = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._admin is None:
            return
        try:
            server = await asyncio.get_running_loop().create_server(
                self._connection, self._admin.host, self._admin.port, backlog=self.config.backlog
            )
        except OSError as error:
            log.critical(
                "the admin port %s:%d: %s", self._admin.host, self._admin.port, error.strerror
            )
            self.has_failed = self.should_exit = True
            return
        self.servers.append(server)
        self._admin.told.number = server.sockets[0].getsockname()[1]
        log.info("administration on http://%s:%d", self._admin.host, self._admin.told.number)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to close the ports and go."""
        if await super().on_tick(counter):
            return True
        return self._is_draining and (self._is_drained or not self.server_state.tasks)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:
            # uvicorn leaves the application's own end out then, and its task ends with a traceback in the log.
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._is_draining:
            self.force_exit = self.should_exit = True
            return
        self._is_draining = True
        self._begin_drain()
        deadline = threading.Timer(self._drain_seconds, self._give_up)
        deadline.daemon = True
        deadline.start()

    def _give_up(self) -> None:
        self._end_drain()
        self._is_drained = True

    def _connection(self) -> asyncio.Protocol:
        assert self._admin is not None
        make: Callable[..., asyncio.Protocol] = (
            self._admin.connection or self.config.http_protocol_class
        )
        return make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
