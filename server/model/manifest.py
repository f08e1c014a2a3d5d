"""Reads and checks manifest.json of an adapter version (docs/contracts.md). Knows files and digests, not tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import AdapterError

FORMAT = "lorachat-adapter/1"
MAX_SMALL_BYTES = 8 * 2**20  # of a manifest, a configuration, a template


class FileEntry(BaseModel):
    sha256: str
    bytes: int


class TemplateEntry(BaseModel):
    file: str
    sha256: str


class BaseEntry(BaseModel):
    id: str
    revision: str | None
    weights_digest: str | None


class Manifest(BaseModel):
    """The fields the server acts on; the rest (recipe, metrics, versions) is for people."""

    model_config = ConfigDict(extra="ignore")
    format: Literal["lorachat-adapter/1"]
    name: str
    version: str
    created: str
    base: BaseEntry
    chat_template: TemplateEntry
    stop_token_ids: frozenset[int]
    files: dict[str, FileEntry]
    probe: dict[str, Any] | None = None


def read_manifest(folder: Path) -> Manifest:
    """Raises AdapterError unless the manifest is whole and belongs to this folder."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise AdapterError("it has no manifest.json, so it was not published by the trainer")
    try:
        fields = json.loads(read_small(path))
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"manifest.json is wrong at '{where}': {first['msg']}") from None
    except (ValueError, RecursionError):
        raise AdapterError("manifest.json is not JSON") from None
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise AdapterError(
            f"manifest.json speaks of {manifest.name}@{manifest.version}; the folder was renamed or copied"
        )
    if not manifest.stop_token_ids:
        raise AdapterError("manifest.json names no stop tokens, so no answer would ever end")
    return manifest


def check_files(
    folder: Path, manifest: Manifest, needed: tuple[str, ...], *, later: str | None = None
) -> None:
    """Every listed file is there with its size and digest, and the needed ones are listed. Raises AdapterError.

    later: a file whose digest is checked when it is read.
    """
    for name in needed:
        if name not in manifest.files:
            raise AdapterError(f"manifest.json does not list {name}")
    for name, entry in manifest.files.items():
        path = within(folder, name)
        if not path.is_file():
            raise AdapterError(f"{name} is missing")
        changed = AdapterError(f"{name} is not the file that was published: its digest differs")
        # Half a copy is told by its size, without reading it.
        if path.stat().st_size != entry.bytes:
            raise changed
        if name == later:
            continue
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise changed


def within(folder: Path, name: str) -> Path:
    """The file's real path. Raises AdapterError if a link or the name itself leads out of the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise AdapterError(f"{name} leads out of the version's folder", "path")
    return path


def read_small(path: Path) -> bytes:
    """Raises AdapterError for a file too large to be what its name says, OSError if it cannot be read."""
    with path.open("rb") as file:
        data = file.read(MAX_SMALL_BYTES + 1)
    if len(data) > MAX_SMALL_BYTES:
        raise AdapterError(f"{path.name} has over {MAX_SMALL_BYTES} bytes", "size")
    return data
