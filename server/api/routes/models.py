"""GET /v1/models and /v1/models/ID; what is not served here says so at its own address."""

from __future__ import annotations

from fastapi import APIRouter, Request

from server.api.allowed_models import list_models as allowed_models
from server.api.caller import caller_of
from server.api.openapi import documented
from server.api.schemas.bodies import ModelBody, ModelList
from server.api.service import Service
from server.errors import ModelNotFoundError, NotServedError


def models_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["Models"])

    def listed(request: Request) -> list[ModelBody]:
        catalogue = service.catalogue
        return [
            ModelBody(
                id=info.id,
                created=info.created,
                root=info.root,
                parent=info.parent,
                digest=info.digest,
                max_model_len=catalogue.max_context,
            )
            for info in allowed_models(catalogue, caller_of(request))
        ]

    @router.get("/v1/models", **documented(None, ModelList))
    def list_models(request: Request) -> ModelList:
        """The base, every adapter (its latest version), and every version: those that the key may use."""
        return ModelList(data=listed(request))

    @router.get("/v1/models/{name:path}", **documented(None, ModelBody, not_found=True))
    def retrieve_model(request: Request, name: str) -> ModelBody:
        """One model of the list."""
        bodies = listed(request)
        for body in bodies:
            if body.id == name:
                return body
        raise ModelNotFoundError(name, [body.id for body in bodies if "@" not in body.id])

    @router.post("/v1/embeddings", **documented(None, None, not_found=True))
    def create_embedding() -> None:
        """Always 404: this server has chat models only."""
        raise NotServedError(
            "This server has no embedding models. A decoder's hidden states are no substitute for one."
        )

    return router
