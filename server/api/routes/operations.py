"""What operators ask: is it alive, is it ready, what does it count, which version is it."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.openapi import documented, documented_text
from server.api.schemas.bodies import Status, VersionBody
from server.api.service import Service
from server.version import VERSION


def operations_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Operations"])

    @router.head("/health", include_in_schema=False)
    @router.get("/health", **documented(None, Status))
    def health() -> JSONResponse:
        """Live: the process can serve, or is on its way to. 503 means: restart me."""
        failure = service.failure
        if failure is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "failed", "reason": failure}, 503)

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", **documented(None, Status))
    def ready() -> JSONResponse:
        """Whether a chat sent now would be answered."""
        status = service.status
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @router.get("/version", **documented(None, VersionBody))
    def version() -> VersionBody:
        return VersionBody(version=VERSION)

    @router.get("/metrics", **documented_text(CONTENT_TYPE_LATEST))
    def metrics() -> Response:
        """Counters and histograms in Prometheus' form."""
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    return router
