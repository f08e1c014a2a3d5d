"""The last checks of a version, which need its weights: every value, every digest, and the probe.

It also makes what the memory loads a version with, now and whenever it comes back. It knows no volume and no names.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Protocol

from server.errors import AdapterError, EngineDeadError, OverloadedError, UnavailableError
from server.model.adapter import module_sizes, read_adapter
from server.model.adapter_memory import AdapterMemory, Lease, Loadable
from server.model.checked_cache import Checked, CheckedCache
from server.model.config import DecoderConfig
from server.model.lora import AdapterWeights, Ranks
from server.model.probe import NoProbe, Score, check_probe
from server.model.version import Version, failing
from server.types import AdapterHandle

log = logging.getLogger("lorachat.adapters")

# A check may wait so long for room among adapters in use; then the next look tries again.
WAIT_SECONDS = 60.0
PASSED = "passed"


class Packer(Protocol):
    """Makes an adapter ready for a runner."""

    def adapter_bytes(self, ranks: Ranks) -> int:
        """Memory that it then takes, at most."""
        ...

    def pack(self, adapter: AdapterWeights) -> AdapterHandle:
        """May run beside a step, in one other thread at a time."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A version that may be served, without its weights. Fits AdapterHandle.

    rank: the largest. num_bytes: of memory, at most. probe: "passed", or why nothing was compared.
    """

    key: str
    digest: str
    rank: int
    num_bytes: int
    probe: str


class NotNowError(Exception):
    """Nothing is known against the version; a later look may tell."""


class Admission:
    """score: computes log-probabilities where steps run; None: there is nothing that could, and no probe is checked.

    on_broken: told of a version that had passed and cannot be loaded any more.
    """

    def __init__(
        self,
        config: DecoderConfig,
        memory: AdapterMemory,
        packer: Packer,
        *,
        score: Score | None,
        cache: CheckedCache | None,
        on_broken: Callable[[str], None],
    ) -> None:
        self._config = config
        self._memory = memory
        self._packer = packer
        self._score = score
        self._cache = cache
        self._on_broken = on_broken

    def admit(self, version: Version, *, anew: bool) -> tuple[AdapterRef, Loadable]:
        """anew: whatever earlier checks said. Raises AdapterError, OSError or NotNowError."""
        num_bytes = self._packer.adapter_bytes(version.ranks)
        self._memory.check_size(num_bytes)
        checked = self._cache.find(version) if self._cache and not anew else None
        if checked is None:
            checked = self._check(version, num_bytes)
            if self._cache:
                self._cache.remember(version, checked)
        ref = AdapterRef(
            version.key, checked.digest, max(version.ranks.values()), num_bytes, checked.probe
        )
        return ref, Loadable(version.key, num_bytes, lambda: self._load_again(version))

    def _check(self, version: Version, num_bytes: int) -> Checked:
        wanted = Loadable(version.key, num_bytes, lambda: self._load(version))
        lease = self._lease(wanted)
        try:
            return Checked(lease.adapter.digest, self._probe(version, lease.adapter))
        except BaseException:
            self._memory.retire(version.key)
            raise
        finally:
            lease.release()

    def _lease(self, wanted: Loadable) -> Lease:
        try:
            future = self._memory.acquire(wanted)
        except OverloadedError as error:
            raise NotNowError(str(error)) from None
        try:
            return future.result(WAIT_SECONDS)
        except FutureTimeoutError:
            future.cancel()
            raise NotNowError("all adapter memory is in use") from None
        except UnavailableError as error:
            raise NotNowError(str(error)) from None

    def _probe(self, version: Version, adapter: AdapterHandle) -> str:
        if isinstance(version.probe, NoProbe):
            log.info("%s was not probed: %s", version.key, version.probe.reason)
            return version.probe.reason
        if self._score is None:
            return "nothing here computes"
        try:
            with failing("probe"):
                worst = check_probe(version.probe, adapter, self._score)
        except (EngineDeadError, UnavailableError, FutureTimeoutError) as error:
            raise NotNowError(str(error) or "the engine did not answer") from None
        log.info("%s computes what PEFT did, to %.1e nats", version.key, worst)
        return PASSED

    def _load(self, version: Version) -> AdapterHandle:
        weights = read_adapter(
            version.folder, version.key, self._config, version.settings, version.sha256
        )
        return self._packer.pack(weights)

    def _load_again(self, version: Version) -> AdapterHandle:
        try:
            return self._load(version)
        except AdapterError as error:
            if self._cache:
                self._cache.forget(version)
            self._on_broken(version.key)
            raise UnavailableError(
                f"The adapter {version.key} cannot be loaded any more: {error}."
            ) from None
        except OSError as error:
            log.error("%s cannot be loaded: %s", version.key, error)
            raise UnavailableError(
                f"The adapter {version.key} cannot be read from its volume at the moment."
            ) from None


class PlainPacker:
    """Nothing is packed: weights are used as they were read. For a catalogue without a runner of its own."""

    def __init__(self, config: DecoderConfig) -> None:
        self._sizes = module_sizes(config)

    def adapter_bytes(self, ranks: Ranks) -> int:
        return 4 * sum(rank * sum(self._sizes[module]) for (_, module), rank in ranks.items())

    def pack(self, adapter: AdapterWeights) -> AdapterHandle:
        return adapter
