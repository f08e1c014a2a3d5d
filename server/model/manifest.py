"""Reads and checks manifest.json of an adapter version (docs/contracts.md). Knows files and digests, not tensors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from server.errors import AdapterError

FORMAT = "lorachat-adapter/1"


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


def read_manifest(folder: Path) -> Manifest:
    """Raises AdapterError unless the manifest is whole and belongs to this folder."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise AdapterError("it has no manifest.json, so it was not published by the trainer")
    try:
        fields = json.loads(path.read_bytes())
        manifest = Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AdapterError(f"manifest.json is wrong at '{where}': {first['msg']}") from None
    except ValueError:
        raise AdapterError("manifest.json is not JSON") from None
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise AdapterError(
            f"manifest.json speaks of {manifest.name}@{manifest.version}; the folder was renamed or copied"
        )
    if not manifest.stop_token_ids:
        raise AdapterError("manifest.json names no stop tokens, so no answer would ever end")
    return manifest


def check_files(folder: Path, manifest: Manifest, needed: tuple[str, ...]) -> None:
    """Every listed file is there with its digest, and the needed ones are listed. Raises AdapterError."""
    root = folder.resolve()
    for name in needed:
        if name not in manifest.files:
            raise AdapterError(f"manifest.json does not list {name}")
    for name, entry in manifest.files.items():
        path = (folder / name).resolve()
        if not path.is_relative_to(root):
            raise AdapterError(f"{name} leads out of the version's folder")
        if not path.is_file():
            raise AdapterError(f"{name} is missing")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise AdapterError(f"{name} is not the file that was published: its digest differs")
