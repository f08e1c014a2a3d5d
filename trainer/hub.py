"""Asks the hub which commit a name stands for now, so that a run can be repeated exactly."""

from __future__ import annotations

from typing import Literal


def commit_of(kind: Literal["model", "dataset"], name: str, revision: str | None) -> str | None:
    """The commit of a hub repository at `revision` (None: its newest); None where it cannot be asked for."""
    from huggingface_hub import HfApi  # noqa: PLC0415 (a hub base or source only)

    try:
        commit: str | None = HfApi().repo_info(name, repo_type=kind, revision=revision).sha
    # Offline, a rate limit, a proxy's page: each client version raises its own classes, and none of them may end a
    # run that has its weights and data from the cache.
    except Exception:
        return revision
    return commit
