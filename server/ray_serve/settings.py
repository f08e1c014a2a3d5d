"""What the server under Ray is told beyond what one server is told. Does not import Ray."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from server.settings import Settings


class RaySettings(Settings):
    """Serve a chat model and its LoRA adapters with several engines under Ray Serve.

    All settings of `python -m server` hold here; those of an engine hold for each of them. Every flag is an
    environment variable too: --max-replicas is LORACHAT_MAX_REPLICAS. The flag wins.
    """

    model_config = SettingsConfigDict(cli_prog_name="python -m server ray")

    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="threads that compute, and CPUs that Ray reserves, for each engine; default: this machine's"
        " cores, shared out over the most engines there may be",
    )
    max_waiting: int = Field(
        64,
        ge=0,
        description="requests that may wait before the engines, all together, besides as many as the fewest engines"
        " take (a burst on its way to them); more are refused with 429",
    )
    replicas: int = Field(
        2,
        ge=1,
        le=1024,
        description="engines at start, each a process with its own copy of the base",
    )
    min_replicas: int | None = Field(
        None, ge=1, description="fewest engines when there is little to do; default: replicas"
    )
    max_replicas: int | None = Field(
        None, ge=1, le=1024, description="most engines when requests wait; default: replicas"
    )
    target_ongoing: int | None = Field(
        None,
        ge=1,
        description="requests per engine, waiting ones included, that Ray scales towards; default: max-running",
    )
    upscale_delay: float = Field(
        30,
        ge=0,
        description="seconds that there must be more than that before Ray starts an engine",
    )
    downscale_delay: float = Field(
        600, ge=0, description="seconds that there must be less than that before Ray takes one away"
    )
    ray_address: str | None = Field(
        None,
        description="a Ray cluster that runs already: auto, or HOST:PORT; default: one of its own, here",
    )
    object_store_mib: int = Field(
        100,
        ge=80,
        description="memory of the own cluster's object store, in MiB; tokens take little",
    )

    @model_validator(mode="after")
    def _one_port(self) -> RaySettings:
        if self.admin_port is not None:
            raise ValueError(
                "there is no --admin-port under Ray; LORACHAT_ADMIN_KEY, or a key with `admin = true`, opens the"
                " admin routes at the public port"
            )
        if self.max_connections is not None:
            raise ValueError("there is no --max-connections under Ray: connections are its proxy's")
        return self

    @model_validator(mode="after")
    def _ordered(self) -> RaySettings:
        if not self.fewest <= self.replicas <= self.most:
            raise ValueError(
                f"min-replicas ({self.fewest}), replicas ({self.replicas}) and max-replicas ({self.most})"
                " must not decrease in this order"
            )
        return self

    @property
    def fewest(self) -> int:
        return self.min_replicas or self.replicas

    @property
    def most(self) -> int:
        return self.max_replicas or self.replicas

    @property
    def is_scaled(self) -> bool:
        return self.fewest < self.most
