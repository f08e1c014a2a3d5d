"""Settings -> who is told of every request when it has ended: the log, and a collector of traces where one is named."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from server.api.observer import Reporter
from server.api.request_log import RequestLog
from server.errors import StartupError
from server.settings import Settings

if TYPE_CHECKING:
    from server.api.tracing import Tracing

log = logging.getLogger("lorachat")

# Either of them asks for traces, as in every program with OpenTelemetry.
OTEL_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def reporters_of(settings: Settings) -> tuple[list[Reporter], Tracing | None]:
    """All of them, and the one among them that has to be closed. Raises StartupError."""
    reporters: list[Reporter] = [RequestLog(with_content=settings.log_content)]
    tracing = tracing_of(settings)
    if tracing is not None:
        reporters.append(tracing)
    return reporters, tracing


def tracing_of(settings: Settings) -> Tracing | None:
    """Where traces are asked for, by the setting or by OpenTelemetry's own variables."""
    by_variable = any(os.environ.get(name) for name in OTEL_VARIABLES)
    if settings.otel_endpoint is None and not by_variable:
        return None
    try:
        from server.api.tracing import Tracing, otlp_exporter
    except ImportError as error:
        missing = (
            f"traces need packages that are not installed ({error.name}):"
            " pip install -r requirements/otel.txt -c requirements/constraints-cpu.txt"
        )
        if settings.otel_endpoint is not None:
            raise StartupError(
                f"{missing}, or leave out --otel-endpoint (or LORACHAT_OTEL_ENDPOINT)."
            ) from None
        # A cluster may set these for every program in it.
        log.warning("no traces are sent, although OTEL_EXPORTER_OTLP_… is set: %s", missing)
        return None
    return Tracing(otlp_exporter(settings.otel_endpoint), with_content=settings.log_content)
