"""Moves `latest` of an adapter back to an earlier version (docs/contracts.md, section 1). Nothing is removed.

Servers follow within their poll; requests that run finish on the version they began with.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from trainer.durable import point_link
from trainer.errors import ConfigError
from trainer.naming import name_problem
from trainer.staging import STAGING_PREFIX

LATEST = "latest"


@dataclass(frozen=True, slots=True)
class RolledBack:
    """before: what `latest` named, None where there was no such link. after: what it names now."""

    before: str | None
    after: str


def rollback(volume: Path, name: str, version: str | None = None) -> RolledBack:
    """Point `latest` of `name` at `version`, by default the one before the present latest, in one step.

    Raises ConfigError, and then `latest` is where it was: for a name or version that is not there, a version that is
    not whole, or where there is nothing earlier. Raises OSError if the volume cannot be written.
    """
    if problem := name_problem(name):
        raise ConfigError(problem)
    home = volume / name
    versions = _versions(home)
    if not versions:
        raise ConfigError(f"There is no published version of {name!r} on the volume {volume}.")
    before = _latest(home)
    after = _chosen(name, versions, before, version)
    if after == before:
        raise ConfigError(f"'latest' of {name} is {after} already.")
    _check_whole(home / after)
    point_link(home / LATEST, after, STAGING_PREFIX)
    return RolledBack(before, after)


def _chosen(name: str, versions: list[str], before: str | None, version: str | None) -> str:
    shown = ", ".join(versions)
    if version is not None:
        if version not in versions:
            raise ConfigError(f"{name} has no version {version!r}. It has: {shown}.")
        return version
    if before is None:
        raise ConfigError(
            f"{name} has no 'latest' to go back from; name a version. It has: {shown}."
        )
    earlier = [known for known in versions if known < before]
    if not earlier:
        raise ConfigError(
            f"{name} has no version before {before}, which 'latest' names. It has: {shown}."
        )
    return earlier[-1]


def _versions(home: Path) -> list[str]:
    """Folders of `home` that a reader would look at, oldest first: a version's name begins with its time."""
    if not home.is_dir():
        return []
    return sorted(
        path.name
        for path in home.iterdir()
        if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
    )


def _latest(home: Path) -> str | None:
    link = home / LATEST
    if link.is_symlink():
        return os.readlink(link)
    if link.exists():
        raise ConfigError(
            f"{link} is not a symbolic link (a copy that followed links?); move it away first."
        )
    return None


def _check_whole(folder: Path) -> None:
    """Every file that the manifest lists is there with its digest. Raises ConfigError."""
    advice = "; name another version, or copy this one to the volume again."
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        belongs = (manifest["name"], manifest["version"]) == (folder.parent.name, folder.name)
        listed = {path: str(entry["sha256"]) for path, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{folder} is not whole: its manifest.json cannot be read{advice}"
        ) from None
    if not belongs or not listed:
        raise ConfigError(f"{folder} is not whole: its manifest.json is another version's{advice}")
    for path, sha256 in listed.items():
        try:
            with (folder / path).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise ConfigError(f"{folder} is not whole: {path} is missing{advice}") from None
        if found != sha256:
            raise ConfigError(f"{folder} is not whole: {path} is not what was published{advice}")
