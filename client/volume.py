"""Reads the adapter volume (docs/contracts.md, section 1): manifests and reports, never weights.

A version that cannot be read is listed with the reason. Knows nothing of the server.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "lorachat-adapter/1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VERSION = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


@dataclass(frozen=True, slots=True)
class Version:
    """What one version says of itself. `problem` is why the rest is unknown; then all else is empty.

    Losses are mean negative log-likelihoods in nats over held-out tokens; parameters, bytes and
    seconds are counts. `prompts` are those that the training report asked.
    """

    name: str
    version: str
    is_latest: bool
    problem: str | None = None
    created: str = ""
    base: str = ""
    trained_on: str = ""
    sources: tuple[str, ...] = ()
    base_loss: float | None = None
    tuned_loss: float | None = None
    held_out_rows: int | None = None
    steps: int | None = None
    train_seconds: float | None = None
    rank: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    warnings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    has_report: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


def read_versions(folder: Path) -> list[Version]:
    """All versions, by name and then newest first; empty if there is no such folder.

    Raises OSError if the folder cannot be listed.
    """
    if not folder.is_dir():
        return []
    versions = []
    for named in sorted(folder.iterdir()):
        if not _NAME.fullmatch(named.name) or named.name == "base" or not named.is_dir():
            continue
        latest = named / "latest"
        target = latest.resolve().name if latest.exists() else ""
        versions += [
            _read_version(path, path.name == target)
            for path in sorted(named.iterdir(), reverse=True)
            if _VERSION.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        ]
    return versions


def report_path(folder: Path, name: str, version: str) -> Path | None:
    """The version's report page, or None where there is none. Never leaves the version's folder."""
    if not (_NAME.fullmatch(name) and _VERSION.fullmatch(version)):
        return None
    home = folder / name / version
    path = (home / "report" / "report.html").resolve()
    return path if path.is_file() and path.is_relative_to(home.resolve()) else None


def _read_version(path: Path, is_latest: bool) -> Version:
    name, version = path.parent.name, path.name
    try:
        manifest = json.loads((path / "manifest.json").read_text("utf-8"))
        if manifest["format"] != FORMAT:
            problem = f"Its format is {manifest['format']}, and this client reads {FORMAT}."
            return Version(name, version, is_latest, problem)
        return _version(path, manifest, is_latest)
    except FileNotFoundError:
        problem = "It has no manifest.json: the version is not whole. Publish it again."
    except OSError as error:
        problem = f"Its manifest.json cannot be read: {error.strerror}."
    except (ValueError, KeyError, TypeError, AttributeError):
        problem = "Its manifest.json is damaged. Publish the version again."
    return Version(name, version, is_latest, problem)


def _version(path: Path, manifest: dict[str, Any], is_latest: bool) -> Version:
    metrics, recipe = manifest.get("metrics") or {}, manifest.get("recipe") or {}
    losses = (metrics.get("held_out_loss") or {}).get("all") or {}
    trained_on = manifest["base"].get("trained_on") or {}
    quantization = trained_on.get("quantization")
    adapter = manifest.get("adapter") or {}
    return Version(
        path.parent.name,
        path.name,
        is_latest,
        created=str(manifest.get("created") or ""),
        base=str(manifest["base"]["id"]),
        trained_on=f"{trained_on.get('id')} ({quantization})" if quantization else "",
        sources=tuple(str(s["name"]) for s in (recipe.get("data") or {}).get("sources") or ()),
        base_loss=losses.get("base"),
        tuned_loss=losses.get("tuned"),
        held_out_rows=losses.get("rows"),
        steps=metrics.get("steps"),
        train_seconds=metrics.get("train_seconds"),
        rank=adapter.get("rank"),
        parameters=adapter.get("parameters"),
        bytes=sum(int(file["bytes"]) for file in manifest["files"].values()),
        warnings=tuple(map(str, metrics.get("warnings") or ())),
        prompts=tuple(map(str, (recipe.get("answers") or {}).get("prompts") or ())),
        has_report=(path / "report" / "report.html").is_file(),
    )
