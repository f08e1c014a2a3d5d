"""The command line: which command, with which settings, and how it ends."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import CliApp

from server.errors import StartupError
from server.log_format import set_up
from server.settings import Settings

Kind = TypeVar("Kind", bound=Settings)


def main() -> None:
    if sys.argv[1:2] == ["key"]:
        sys.exit(_make_key(sys.argv[2:]))
    if sys.argv[1:2] == ["size"]:
        from server.sizing.command import main as size

        sys.exit(size(sys.argv[2:]))
    if sys.argv[1:2] == ["ray"]:
        sys.exit(_serve_with_ray(sys.argv[2:]))
    # Nothing is fetched because of a request; the base may be, once, at start, when it is a hub id.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if sys.argv[1:2] in (["doctor"], ["bench"]):
        sys.exit(_diagnose(sys.argv[1], sys.argv[2:]))
    settings = _read_settings(Settings)
    set_up(settings.log_format, settings.log_level)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    from server.serving import serve

    try:
        sys.exit(serve(settings))
    except StartupError as error:
        _exit(str(error))


def _make_key(arguments: list[str]) -> int:
    """`python -m server key NAME`: the key on stderr, its table for the key file on stdout."""
    import argparse
    import re

    from server.api.key_file import NAME
    from server.api.new_key import make_key

    parser = argparse.ArgumentParser(
        prog="python -m server key",
        description="Makes an API key and shows it once, on the error output. Standard output is its table for the key"
        " file, which holds only a digest of it: append it (`python -m server key phone >>keys.toml`).",
    )
    parser.add_argument("name", help="of the key's holder: letters, digits, '.', '_', '-'")
    parser.add_argument("--admin", action="store_true", help="it opens the admin routes too")
    options = parser.parse_args(arguments)
    if not re.fullmatch(NAME, options.name):
        parser.error("a name is 1 to 64 letters, digits, '.', '_' and '-'")
    made = make_key(options.name, is_admin=options.admin)
    print(f"The key of {options.name}, shown this once: {made.key}", file=sys.stderr)
    print(made.table, end="")
    return 0


def _read_settings(kind: type[Kind], arguments: list[str] | None = None) -> Kind:
    try:
        return CliApp.run(kind, cli_args=arguments)
    except ValidationError as error:
        for detail in error.errors():
            if not detail["loc"]:  # of several settings together
                _exit(f"{detail['msg'].removeprefix('Value error, ')}.")
            name = str(detail["loc"][0])
            flag, variable = f"--{name.replace('_', '-')}", f"LORACHAT_{name.upper()}"
            if detail["type"] == "missing":
                _exit(f"{flag} (or {variable}) is required: a hub id, a folder or a GGUF file."
                      " `make model` prepares a small one and prints its folder.")  # fmt: skip
            given = "" if name in ("api_keys", "admin_key") else f" (got {detail['input']!r})"
            _exit(f"{flag} (or {variable}): {detail['msg']}{given}.")
        raise


def _serve_with_ray(arguments: list[str]) -> int:
    """`python -m server ray …`: the same server in several processes, on one machine or many."""
    from server.ray_serve.settings import RaySettings

    settings = _read_settings(RaySettings, arguments)
    # Before Ray is imported. It reports usage to its makers unless told not to; here nothing leaves the machine.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # By default a proxy that needs over five seconds to start, as on a busy box, is killed for it, again and again.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    # Else lines of two engines that look alike are shown once.
    os.environ["RAY_DEDUP_LOGS"] = "0"
    if settings.ray_address is None:
        # Its ports listen on the machine's address, whatever --host says: who comes without its token is refused.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        from server.ray_serve.run import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        _exit(
            "Ray is not installed here. `make ray` makes an environment with it; by hand:"
            " pip install -c requirements/constraints-ray.txt -r requirements/ray.txt"
        )
    try:
        return run(settings)
    except StartupError as error:
        _exit(str(error))


def _diagnose(command: str, arguments: list[str]) -> int:
    from server.diagnosis import Bench, Doctor, bench, doctor

    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if command == "doctor":
        return doctor(_read_settings(Doctor, arguments), as_json=as_json)
    return bench(_read_settings(Bench, arguments), as_json=as_json)


def _exit(message: str) -> NoReturn:
    print(f"server: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
