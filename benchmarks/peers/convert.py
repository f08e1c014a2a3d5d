"""Models and adapters in the formats that two of the peers need, made once, by the peers' own converters."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.process import ROOT


class PeerError(Exception):
    """A peer that cannot be measured; the message says why and what to do."""


def environment(name: str) -> Path:
    """The peer's environment. Raises PeerError if it has not been made."""
    # vLLM's is that of `make test-vllm`: it takes gigabytes.
    folder = ROOT / (".venv-vllm" if name == "vllm" else f".venv-peer-{name}")
    if not (folder / "bin/python").exists():
        raise PeerError(f"not installed: run benchmarks/peers/setup {name}")
    return folder


def openvino_model(model: Path, output: Path) -> Path:
    """The float32 model in OpenVINO's format."""
    folder = output / "peers" / "openvino" / model.name
    command = ["bin/optimum-cli", "export", "openvino", "--model", str(model), "--weight-format", "fp32",
               "--task", "text-generation-with-past"]  # fmt: skip
    _make("openvino", command, folder)
    return folder


def gguf_model(model: Path, output: Path, kind: str = "F32") -> Path:
    """The model as GGUF. kind: F32, or a quantised type, which is made from that."""
    file = output / "peers" / "llama-cpp" / f"{model.name}-{kind}.gguf"
    if kind == "F32":
        command = ["bin/python", "src/vendor/llama.cpp/convert_hf_to_gguf.py", str(model), "--outtype", "f32",
                   "--outfile"]  # fmt: skip
        _make("llama-cpp", command, file)
    else:
        source = gguf_model(model, output)
        _make("llama-cpp", ["build/bin/llama-quantize", str(source)], file, [kind])
    return file


def gguf_adapter(model: Path, adapter: Path, output: Path) -> Path:
    """A PEFT adapter as GGUF, in float32."""
    file = output / "peers" / "llama-cpp" / f"{model.name}-{adapter.parent.name}.gguf"
    command = ["bin/python", "src/vendor/llama.cpp/convert_lora_to_gguf.py", str(adapter), "--base", str(model),
               "--outtype", "f32", "--outfile"]  # fmt: skip
    _make("llama-cpp", command, file)
    return file


def _make(peer: str, command: list[str], target: Path, after: list[str] | None = None) -> None:
    """Runs a program of the peer's environment with the target behind its arguments, unless it is there.

    Written beside its final name and renamed. Raises PeerError with the end of what the program said.
    """
    if target.exists():
        return
    place = environment(peer)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{os.getpid()}-{target.name}")
    arguments = [str(place / part) if (place / part).exists() else part for part in command[:2]]
    result = subprocess.run(
        [*arguments, *command[2:], str(partial), *(after or [])],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise PeerError(f"{command[0]} failed:\n{(result.stdout + result.stderr)[-1500:]}")
    partial.rename(target)
