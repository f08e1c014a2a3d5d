"""The words about adapters that API and model share: a lease, what an operator sees, what an operator may do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from server.types import AdapterHandle, ServedModel


class AdapterLease(Protocol):
    """The right to compute with an adapter's weights: they stay in memory until release(), not for it after that."""

    @property
    def adapter(self) -> AdapterHandle:
        """What the runner computes with. Not to be asked for after release()."""
        ...

    def share(self) -> AdapterLease:
        """Another lease of the same adapter, to be released for itself; waits for nothing."""
        ...

    def release(self) -> None:
        """Safe any number of times."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter version as an operator sees it.

    id: NAME@VERSION, or NAME of a folder that was refused as a whole. state: refused; unloaded (by an operator);
    draining (gone from the volume or unloaded, but answers still run); pinned, serving (answers run) or loaded, all
    three in memory; available (comes into memory when it is asked for). latest: what NAME stands for. signed:
    published with a manifest. reason: of a refusal. since: of refusing or unloading, Unix seconds. bytes: of memory, at
    most. last_used, created: Unix seconds. probe: "passed", or why nothing was compared.
    """

    id: str
    name: str
    version: str
    state: str
    latest: bool = False
    pinned: bool = False
    signed: bool = True
    reason: str | None = None
    since: float | None = None
    base: str | None = None
    digest: str | None = None
    rank: int | None = None
    bytes: int | None = None
    created: int | None = None
    last_used: float | None = None
    requests_running: int = 0
    probe: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterStats:
    """refused: versions at the moment, by the check they fail. refusals: the same, counted since the start."""

    refused: Mapping[str, int]
    refusals: Mapping[str, int]
    bytes_used: int
    bytes_limit: int
    resident: int
    waiting: int
    loads: int
    evictions: int


class Adapters(Protocol):
    """The adapters on the volume and in memory. Callable from any thread."""

    def acquire(self, model: ServedModel) -> Future[Any]:
        """A future AdapterLease of the model's weights. Raises OverloadedError; it fails with UnavailableError."""
        ...

    @property
    def stats(self) -> AdapterStats: ...

    def describe(self) -> Sequence[AdapterInfo]: ...

    def reload(self, name: str) -> Sequence[AdapterInfo]:
        """Look at the volume now, and at all versions of NAME, or at NAME@VERSION, as if they were new.

        This and the following raise ModelNotFoundError for a name that is nobody's, and tell of the versions concerned.
        """
        ...

    def unload(self, name: str) -> Sequence[AdapterInfo]:
        """Serve these no more, though they stay on the volume; running answers finish. A reload undoes it."""
        ...

    def pin(self, name: str) -> Sequence[AdapterInfo]:
        """Keep in memory what NAME stands for, now and when that changes, or NAME@VERSION. Raises ConflictError."""
        ...

    def unpin(self, name: str) -> Sequence[AdapterInfo]: ...

    def is_at(self, name: str, path: str) -> bool:
        """Whether a path, absolute or from the volume's root, is where NAME or NAME@VERSION lies under that root."""
        ...
