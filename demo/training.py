"""Trains the demo's adapter, once: a second run finds the published version and does nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import data, model, programs

ADAPTER = "smalltalk"
RECIPE = Path("trainer/recipes/smollm2-cpu-demo.yaml")


@dataclass(frozen=True, slots=True)
class Published:
    """The version that `latest` points at."""

    folder: Path
    metrics: dict[str, Any]

    @property
    def losses(self) -> dict[str, Any]:
        """Held-out loss of base and tuned in nats per token, with the counts, over all sources."""
        held_out: dict[str, Any] = self.metrics["held_out_loss"]
        return held_out["all"] if "all" in held_out else next(iter(held_out.values()))


def train(cache: Path, volume: Path) -> Published:
    """Train and publish unless the volume already holds the outcome. Raises DemoError."""
    base, files = model.prepare(cache), data.prepare(cache)
    stamp = cache / "demo-adapter.json"
    inputs = hashlib.sha256(
        (programs.ROOT / RECIPE).read_bytes()
        + files.help_desk.read_bytes()
        + files.small_talk.read_bytes()
        + model.BASE_ID.encode()
    ).hexdigest()
    latest = volume / ADAPTER / "latest"
    if _stamped(stamp) != {"inputs": inputs, "version": _version(latest)}:
        output = cache / "runs" / "demo"
        shutil.rmtree(output, ignore_errors=True)  # left by a run that did not reach its end
        programs.run(
            [
                "trainer",
                "train",
                "--recipe",
                str(RECIPE),
                "--set",
                f"model.base={base}",
                "--set",
                f"model.base_id={model.BASE_ID}",
                "--set",
                f"data.sources.0.location={files.help_desk}",
                "--set",
                f"data.sources.1.location={files.small_talk}",
                "--output",
                str(output),
                "--adapters",
                str(volume),
                "--name",
                ADAPTER,
            ]
        )
        stamp.write_text(json.dumps({"inputs": inputs, "version": _version(latest)}) + "\n")
    return published(volume)


def published(volume: Path) -> Published:
    folder = (volume / ADAPTER / "latest").resolve()
    manifest = json.loads((folder / "manifest.json").read_bytes())
    return Published(folder, manifest["metrics"])


def _stamped(stamp: Path) -> object:
    try:
        return json.loads(stamp.read_bytes())
    except (OSError, ValueError):
        return None


def _version(latest: Path) -> str | None:
    return latest.readlink().name if latest.is_symlink() and latest.exists() else None
