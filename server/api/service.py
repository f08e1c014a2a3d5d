"""What the routes need to know of the server: is it ready, which models are there, where is the engine.

The app answers /health from its first moment, while the model is still loading in another thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.adapter_types import AdapterLease, Adapters, AdapterStats
from server.api.metrics import Metrics
from server.engine.engine import DEAD, Engine
from server.errors import NotServedError, UnavailableError
from server.grammar.compiler import GrammarCompiler
from server.types import Catalogue, EngineStats, ServedModel

if TYPE_CHECKING:
    from server.api.record import RequestRecord


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading gives. info: labels for lorachat_engine_info, such as kernel and weights.

    adapters: None where no model has any.
    sizes: in bytes, of what does not change: `weight` and `memory_limit` become lorachat_…_bytes.
    """

    engine: Engine
    catalogue: Catalogue
    info: Mapping[str, str] | None = None
    adapters: Adapters | None = None
    sizes: Mapping[str, int] | None = None


class Service:
    """max_choices: the largest `n`. keepalive_seconds: silence in a stream before a comment is sent.

    max_answer_tokens: the largest limit that a request may ask for; None: what the context holds. keeps_content: runs
    remember the text of their answers, for those who are asked to report it.
    """

    def __init__(
        self,
        *,
        max_choices: int,
        keepalive_seconds: float,
        max_answer_tokens: int | None = None,
        keeps_content: bool = False,
    ) -> None:
        self.max_choices = max_choices
        self.keepalive_seconds = keepalive_seconds
        self.max_answer_tokens = max_answer_tokens
        self.keeps_content = keeps_content
        self.is_draining = False
        self._info: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self.metrics = Metrics(self._stats, self._info, self._sizes, lambda: self.status == "ready")
        self.metrics.add_models(self._models)
        self.metrics.add_adapters(self._adapter_stats)
        self._loaded: Loaded | None = None
        self._grammars: GrammarCompiler | None = None
        self._load_failure: str | None = None

    def set_loaded(self, loaded: Loaded) -> None:
        self._info.update(loaded.info or {})
        self._sizes.update(loaded.sizes or {})
        self._grammars = GrammarCompiler(loaded.catalogue.vocab_size)
        self._loaded = loaded

    def set_failed(self, reason: str) -> None:
        self._load_failure = reason

    @property
    def status(self) -> str:
        """loading, ready, draining or failed."""
        if self.failure is not None:
            return "failed"
        if self._loaded is None:
            return "loading"
        return "draining" if self.is_draining else "ready"

    @property
    def failure(self) -> str | None:
        """Why this process cannot go on; None while it can. Says nothing of its insides."""
        if self._load_failure is not None:
            return self._load_failure
        if self._loaded is not None and self._loaded.engine.failure is not None:
            return DEAD
        return None

    @property
    def engine(self) -> Engine:
        return self._get().engine

    @property
    def catalogue(self) -> Catalogue:
        return self._get().catalogue

    @property
    def grammars(self) -> GrammarCompiler:
        self._get()
        assert self._grammars is not None, "made with what was loaded"
        return self._grammars

    @property
    def adapters(self) -> Adapters:
        """Raises NotServedError where there are none."""
        adapters = self._get().adapters
        if adapters is None:
            raise NotServedError("This server has no adapters.")
        return adapters

    async def lease(self, model: ServedModel) -> AdapterLease | None:
        """The right to compute with the model's adapter, once its weights are in memory; None if it has none.

        Raises OverloadedError or UnavailableError.
        """
        adapters = self._get().adapters
        if adapters is None or model.adapter is None:
            return None
        lease: AdapterLease = await asyncio.wrap_future(adapters.acquire(model))
        return lease

    def report(self, record: RequestRecord) -> None:
        """Count a request that has ended, by its key."""
        if record.operation is not None:
            self.metrics.answered(record.key, record.status, record.runs)

    def default_max_tokens(self, prompt_tokens: int) -> int:
        """Without a limit of the caller's, an answer may fill what the prompt leaves, up to the operator's limit."""
        room = max(1, self.catalogue.max_context - prompt_tokens)
        return room if self.max_answer_tokens is None else min(room, self.max_answer_tokens)

    def check_open(self) -> None:
        """Raises UnavailableError once the server is going away: what runs may end, nothing new begins."""
        if self.is_draining:
            raise UnavailableError(
                "The server is shutting down. Try another, or again in a moment."
            )

    def _get(self) -> Loaded:
        if self._loaded is None:
            raise UnavailableError(
                "The model is still loading. Ask again in a moment, or wait for /ready."
            )
        return self._loaded

    def _stats(self) -> EngineStats | None:
        return None if self._loaded is None else self._loaded.engine.stats

    def _adapter_stats(self) -> AdapterStats | None:
        if self._loaded is None or self._loaded.adapters is None:
            return None
        return self._loaded.adapters.stats

    def _models(self) -> list[tuple[str, str, str]]:
        if self._loaded is None:
            return []
        return [
            (info.id, info.digest or "", info.parent or "")
            for info in self._loaded.catalogue.list()
        ]
