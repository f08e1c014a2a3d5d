"""What docs/contracts.md promises a reader of the adapter volume, as checks."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

VERSION = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")


def check_version(folder: Path) -> None:
    """Fail unless `folder` is a whole version: every file is listed, and every listed file is there and intact."""
    manifest = json.loads((folder / "manifest.json").read_text())
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"manifest.json"}
    assert present == set(manifest["files"])
    for relative, entry in manifest["files"].items():
        content = (folder / relative).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert manifest["version"] == folder.name
    assert VERSION.fullmatch(folder.name)
    assert manifest["files"]["adapter_model.safetensors"]["sha256"].startswith(folder.name[-6:])


def visible_versions(home: Path) -> list[str]:
    """The versions a reader sees under `home`, each checked to be whole, `latest` to be one of them."""
    if not home.exists():
        return []
    names = sorted(path.name for path in home.iterdir() if not path.name.startswith("."))
    versions = [name for name in names if name != "latest"]
    for version in versions:
        check_version(home / version)
    latest = home / "latest"
    if latest.is_symlink():
        assert latest.readlink().as_posix() in versions
    return versions
