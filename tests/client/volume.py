"""Writes versions of adapters as docs/contracts.md has them, without weights: the client reads none."""

import json
from pathlib import Path
from typing import Any


def write_version(
    volume: Path,
    name: str,
    version: str,
    *,
    base: str = "tiny",
    prompts: list[str] | None = None,
    latest: bool = False,
    report: str | None = None,
    **changes: Any,
) -> Path:
    folder = volume / name / version
    folder.mkdir(parents=True)
    if report is not None:
        (folder / "report").mkdir()
        (folder / "report" / "report.html").write_text(report)
    manifest = {
        "format": "lorachat-adapter/1",
        "name": name,
        "version": version,
        "created": "2026-11-23T08:16:42Z",
        "base": {"id": base, "trained_on": {"id": f"{base}-4bit", "quantization": "nf4"}},
        "adapter": {"rank": 16, "parameters": 24313856},
        "files": {"adapter_model.safetensors": {"sha256": "0", "bytes": 97309184}},
        "recipe": {
            "data": {"sources": [{"name": "help-desk"}, {"name": "small-talk"}]},
            "answers": {"prompts": prompts or ["Hi"]},
        },
        "metrics": {
            "held_out_loss": {"all": {"base": 2.5, "tuned": 2.0, "rows": 41, "tokens": 718}},
            "steps": 40,
            "train_seconds": 121.5,
            "warnings": ["The warm-up is longer than the run."],
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))
    if latest:
        (volume / name / "latest").symlink_to(version)
    return folder
