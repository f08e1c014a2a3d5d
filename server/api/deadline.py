"""How long a request may take: the server's limit, or less if the caller says so in x-request-timeout."""

from __future__ import annotations

import math

from starlette.datastructures import Headers

from server.errors import InvalidRequestError

HEADER = "x-request-timeout"


def timeout_seconds(headers: Headers, limit: float | None) -> float | None:
    """Seconds for the whole request; None: as long as it takes. Raises InvalidRequestError if the header is no time."""
    given = headers.get(HEADER)
    if given is None:
        return limit
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InvalidRequestError(
            f"The header '{HEADER}' must be a number of seconds, over 0 (got {given[:40]!r}).",
            param=HEADER,
        )
    return seconds if limit is None else min(seconds, limit)
