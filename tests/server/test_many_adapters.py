"""A hundred adapters on the embedded model, with memory for a few of them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.model.adapter import module_sizes
from server.model.config import DecoderConfig, read_config
from tests.models import write_manifest
from tests.server.adapter_live import Admin, administered

pytestmark = pytest.mark.model

COUNT, RANK, ROOM = 100, 16, 7
MODULES = ("q_proj", "v_proj")  # PEFT's own choice for Llama
VERSION = "20261123-080000-aaaaaa"


def write_random_adapter(folder: Path, config: DecoderConfig, number: int, model: Path) -> None:
    """As PEFT saves one, with random values of which the number is the seed."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(number)
    tensors = {}
    for layer in range(config.num_layers):
        for module in MODULES:
            size_in, size_out = module_sizes(config)[module]
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            a, b = (RANK, size_in), (size_out, RANK)
            tensors[f"{name}.lora_A.weight"] = chance.normal(0, 0.05, a).astype(np.float32)
            tensors[f"{name}.lora_B.weight"] = chance.normal(0, 0.05, b).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(MODULES)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, folder / name)
    # A short prompt: it is the adapters that are to be computed here.
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))  # settled long ago


@pytest.fixture
def volume(embedded_model: Path, tmp_path: Path) -> Iterator[Path]:
    """A hundred published adapters; removed afterwards, since they are half a gigabyte."""
    config = read_config(json.loads((embedded_model / "config.json").read_text()))
    root = tmp_path / "adapters"
    for number in range(COUNT):
        folder = root / f"a{number}" / VERSION
        write_random_adapter(folder, config, number, embedded_model)
        write_manifest(folder, weights_digest=None, base_id=embedded_model.name)
        os.utime(folder / "manifest.json", (1e9, 1e9))
    yield root
    shutil.rmtree(root)


def test_a_hundred_adapters_are_served_as_without_a_bound(
    embedded_model: Path, volume: Path, tmp_path: Path
) -> None:
    names = [f"a{number}" for number in range(COUNT)]
    order = [
        names[(7 * number) % COUNT] for number in range(COUNT)
    ]  # neighbours in time are others
    options: dict[str, Any] = {
        "rank": RANK, "modules": MODULES, "cache": tmp_path / "cache", "threads": 2}  # fmt: skip

    def answers(admin: Admin) -> dict[str, str]:
        """The tokens and their log-probabilities, to the bit: two adapters never agree in these."""

        def ask(name: str) -> str:
            response = admin.chat(name, max_tokens=2, logprobs=True)
            assert response.status_code == 200, response.text
            return json.dumps(response.json()["choices"][0]["logprobs"]["content"])

        with ThreadPoolExecutor(8) as callers:
            return dict(zip(order, callers.map(ask, order), strict=True))

    with administered(embedded_model, volume, volume, **options) as admin:
        admin.desk.refresh()
        assert len(admin.models()) == 1 + 2 * COUNT
        expected = answers(admin)
        assert admin.desk.stats.evictions == 0
        loads = admin.desk.stats.loads
    assert loads == COUNT
    assert len(set(expected.values())) == COUNT, "adapters that say the same show nothing"
    with administered(embedded_model, volume, volume, room=ROOM, **options) as admin:
        admin.desk.refresh()
        assert admin.desk.stats.loads == 0, "a restart reads no weights of what was checked"
        assert len(admin.models()) == 1 + 2 * COUNT
        assert answers(admin) == expected
        stats = admin.desk.stats
        assert stats.resident <= ROOM
        assert stats.bytes_used <= stats.bytes_limit
        assert stats.evictions >= COUNT - ROOM
        states = [row["state"] for row in admin.rows().values()]
        assert states.count("loaded") == stats.resident
        assert states.count("available") == COUNT - stats.resident
        before = stats.loads
        admin.desk.refresh()
        assert admin.desk.stats.loads == before, "a look at the volume reads nothing again"
