"""Finds an adapter: a folder, or a name on the volume."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FoundAdapter:
    """Where an adapter lies, what it is called, and what it says of itself. manifest: empty for an unpublished one."""

    folder: Path
    name: str
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def base_id(self) -> str:
        """The float base it belongs to."""
        known = self.manifest.get("base", {}).get("id")
        return str(known or self.config.get("base_model_name_or_path") or "")

    @property
    def served_name(self) -> str:
        """What a server of the same volume calls exactly this version."""
        version = self.manifest.get("version")
        return f"{self.name}@{version}" if version else self.name


def find_adapter(given: str, volume: Path) -> FoundAdapter:
    """By a folder's path, or as NAME or NAME@VERSION on the volume. Raises ConfigError."""
    name, _, version = given.partition("@")
    places = [Path(given), volume / name / (version or "latest")]
    for folder in places:
        if not (folder / "adapter_config.json").is_file():
            continue
        try:
            config = json.loads((folder / "adapter_config.json").read_bytes())
            manifest = folder / "manifest.json"
            facts = json.loads(manifest.read_bytes()) if manifest.is_file() else {}
        except ValueError as error:
            raise ConfigError(f"{folder} is not readable: {error}.") from None
        return FoundAdapter(folder.resolve(), facts.get("name", folder.name), config, facts)
    raise ConfigError(
        f"There is no adapter {given!r}: neither {places[0]} nor {places[1]} holds an adapter_config.json."
    )
