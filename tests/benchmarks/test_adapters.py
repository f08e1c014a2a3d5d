"""The benchmark's adapters are what users publish: our server answers with them, and PEFT computes with them."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from benchmarks.adapters import adapter_folder, adapter_names, write_adapters
from benchmarks.ours import lorachat
from benchmarks.process import ServerError, ServerProcess, free_port, machine_cpu_seconds


@pytest.fixture
def volume(tiny_model: Path, tmp_path: Path) -> Path:
    write_adapters(tiny_model, tmp_path / "adapters", 2)
    return tmp_path / "adapters"


def test_our_server_answers_with_them(tiny_model: Path, volume: Path, tmp_path: Path) -> None:
    server, port = lorachat(tiny_model, volume, threads=1, max_running=2), free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    with ServerProcess(server.command(port), url, log, server.environment) as process:
        target = server.targets["one"][0]
        assert 0 < process.wait_for_first_token(target, 120) < 120
        models = [entry["id"] for entry in httpx.get(f"{url}/v1/models").json()["data"]]
        assert process.peak_bytes > 50e6  # torch alone is more
        assert 0.1 < process.cpu_seconds() <= machine_cpu_seconds()
    assert set(models) >= {"base", *adapter_names(2)}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_server_that_does_not_come_up_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    server = lorachat(tmp_path / "nothing", tmp_path, threads=1, max_running=1)
    port = free_port()
    with (
        ServerProcess(
            server.command(port), f"http://127.0.0.1:{port}", tmp_path / "log", server.environment
        ) as process,
        pytest.raises(ServerError, match="nothing"),
    ):
        process.wait_for_first_token(server.targets["base"][0], 120)


def test_peft_computes_with_them(tiny_model: Path, volume: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, str(adapter_folder(volume, 0)))
    tuned.load_adapter(str(adapter_folder(volume, 1)), "second")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        first = tuned(ids).logits
        tuned.set_adapter("second")
        second = tuned(ids).logits
        with tuned.disable_adapter():
            plain = tuned(ids).logits
    assert not torch.allclose(first, plain)
    assert not torch.allclose(first, second)
