"""Random LoRA adapters for a model folder, in the volume format of docs/contracts.md and readable by PEFT."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

RANK, ALPHA = 16, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# B is small beside the base, as after a short training: answers change, and stay language.
B_STD = 0.02
CREATED = "2026-01-01T00:00:00Z"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_adapters(base: Path, volume: Path, count: int) -> None:
    """Adapters bench-0 … bench-(count-1), each with its own random weights, one version each."""
    from trainer.weights import weights_digest

    digest = weights_digest(base)
    for number in range(count):
        version = write_version(base, volume / f"bench-{number}", number, digest)
        (version.parent / "latest").symlink_to(version.name)


def adapter_folder(volume: Path, number: int) -> Path:
    """The version folder, which is also what PEFT loads."""
    return (volume / f"bench-{number}" / "latest").resolve()


def adapter_names(count: int) -> list[str]:
    return [f"bench-{number}" for number in range(count)]


def write_version(base: Path, target: Path, seed: int, digest: str) -> Path:
    """A version with random weights in the folder `target`, whose name is the adapter's. digest: of the base."""
    from peft import LoraConfig
    from safetensors.torch import save

    data = save(_tensors(json.loads((base / "config.json").read_text()), seed))
    version = f"20260101-000000-{hashlib.sha256(data).hexdigest()[:6]}"
    folder = target / version
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(data)
    LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=TARGETS,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base.name,
        inference_mode=True,
    ).save_pretrained(str(folder))
    for name in TOKENIZER_FILES:
        shutil.copyfile(base / name, folder / name)
    manifest = _manifest(base, folder, digest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return folder


def _tensors(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """PEFT's own initialisation for A (uniform, bound 1/sqrt(inputs)); B normal, not zero. By PEFT's names."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    queries, keys = heads * head_dim, config["num_key_value_heads"] * head_dim
    shapes = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for module, (inputs, outputs) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            a = torch.rand(RANK, inputs, generator=generator) * 2 - 1
            tensors[f"{prefix}.lora_A.weight"] = a / inputs**0.5
            b = torch.randn(outputs, RANK, generator=generator)
            tensors[f"{prefix}.lora_B.weight"] = b * B_STD
    return tensors


def _manifest(base: Path, folder: Path, digest: str) -> dict[str, Any]:
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.iterdir())
    }
    stop = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    return {
        "format": "lorachat-adapter/1",
        "name": folder.parent.name,
        "version": folder.name,
        "created": CREATED,
        "base": {
            "id": base.name,
            "revision": None,
            "architecture": "LlamaForCausalLM",
            "weights_digest": digest,
            "trained_on": {"id": base.name, "revision": None, "quantization": None},
        },
        "chat_template": {
            "file": "chat_template.jinja",
            "sha256": files["chat_template.jinja"]["sha256"],
        },
        "stop_token_ids": sorted(stop if isinstance(stop, list) else [stop]),
        "adapter": {"rank": RANK, "alpha": ALPHA, "rslora": False, "target_modules": TARGETS},
        "files": files,
        "recipe": {},
        "metrics": {},
        "versions": {},
    }
