"""Settings -> what the door checks: the keys of the environment and of the key file, sizes, times, browsers."""

from __future__ import annotations

import logging
import threading

from server.api.key_file import KeyFile
from server.api.keys import Keyring, environment_keys
from server.api.policy import AdminPort, Policy
from server.errors import StartupError
from server.settings import LOOPBACK, Settings

log = logging.getLogger("lorachat")

KEY_FILE_SECONDS = 1.0
# A part of what memory.py reserves. Eighty requests of 800 KB; a prompt of 8,000 tokens has about 40.
MAX_BODIES_BYTES = 64 * 2**20


def policy_of(settings: Settings) -> tuple[Policy, KeyFile | None]:
    """What the door checks. Raises StartupError for what cannot be secure; warns of what may be meant."""
    key_file = None if settings.api_key_file is None else KeyFile(settings.api_key_file)
    admin_key = None if settings.admin_key is None else settings.admin_key.get_secret_value()
    fixed = environment_keys([key.get_secret_value() for key in settings.api_keys], admin_key)
    keyring = Keyring(fixed, None if key_file is None else key_file.keys)
    if keyring.is_open and not settings.is_local:
        log.warning(
            "listening on %s without an API key: anyone who reaches it can use it", settings.host
        )
    admin_port = None
    if settings.admin_port is not None:
        if settings.admin_host not in LOOPBACK and not keyring.has_admin:
            raise StartupError(
                f"--admin-host {settings.admin_host} lets other machines administer this server, so it needs"
                " LORACHAT_ADMIN_KEY or a key with `admin = true` in the key file."
            )
        admin_port = AdminPort(takes_metrics=not settings.public_metrics)
    policy = Policy(
        keyring=keyring,
        max_body_bytes=settings.max_body_bytes,
        max_bodies_bytes=max(MAX_BODIES_BYTES, 4 * settings.max_body_bytes),
        stall_seconds=settings.stall_seconds,
        request_seconds=settings.request_timeout,
        admin_port=admin_port,
        cors_origins=settings.cors_origins,
        trusted_hosts=settings.trusted_hosts,
    )
    return policy, key_file


def watch_keys(key_file: KeyFile, stopping: threading.Event) -> None:
    """A thread: a key that is taken out of the file is refused a second later."""
    while not stopping.wait(KEY_FILE_SECONDS):
        key_file.refresh()
