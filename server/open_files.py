"""How many connections the system lets this process hold: each is an open file. It raises that limit if it may."""

from __future__ import annotations

import logging
import resource

from server.api.places import SPARE
from server.errors import StartupError

log = logging.getLogger("lorachat")

DEFAULT_CONNECTIONS = 512
# The base's and the adapters' files, the key file, a collector of traces, the admin port's connections.
OTHER_FILES = 256
LEAST_CONNECTIONS = 16


def connection_limit(wanted: int | None) -> int:
    """Connections there may be; wanted: as set, None for DEFAULT_CONNECTIONS or as many as the system allows.

    Raises StartupError if the system allows fewer than are wanted.
    """
    needed = (wanted or DEFAULT_CONNECTIONS) + SPARE + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted or DEFAULT_CONNECTIONS
    files = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files == needed:
        return wanted or DEFAULT_CONNECTIONS
    found = files - SPARE - OTHER_FILES
    advice = (
        f"raise the limit to {needed} (ulimit -Hn, systemd's LimitNOFILE=, a container's nofile)"
    )
    if wanted is not None or found < LEAST_CONNECTIONS:
        raise StartupError(
            f"{wanted or DEFAULT_CONNECTIONS} connections take {needed} open files with all else, and this process may"
            f" open {files}: {advice}."
        )
    log.warning(
        "at most %d connections, because this process may open %d files only: %s",
        found, files, advice,
    )  # fmt: skip
    return found
