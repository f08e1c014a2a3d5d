"""The trainer says what PEFT computes; the server computes it again, and serves no version that gives anything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from server.adapter_types import AdapterInfo
from server.engine.engine import Engine
from server.engine.scheduler import Limits
from server.model.adapter_desk import AdapterDesk
from server.model.backend import ServingRunner, make_backend
from server.model.catalogue import VolumeCatalogue
from server.model.digest import weights_digest
from server.model.loader import BaseModel, load_base
from server.model.probe import TOLERANCE, NoProbe, Probe, read_probe
from server.model.score import score
from server.native.build import build
from tests.families import write_model
from tests.models import write_peft_adapter
from tests.trainer.run_records import run_record
from trainer.probe import peft_probe, probe_ids
from trainer.publish import publish
from trainer.record import Probe as PublishedProbe
from trainer.template import ChatTemplate


def published(model: Path, volume: Path, **settings: Any) -> Path:
    """A version as the trainer publishes it: the adapter is PEFT's, and so is the probe."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = volume.parent / "adapter"
    write_peft_adapter(model, adapter, **settings)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    template = ChatTemplate(tokenizer, tokenizer.chat_template)
    record = run_record()
    return publish(
        adapter,
        dataclasses.replace(
            record,
            name="talk",
            base=dataclasses.replace(
                record.base,
                id="base-model",
                weights_digest=weights_digest(load_base(str(model)).checkpoint),
            ),
            stop_token_ids=(2,),
            probe=peft_probe(base, adapter, probe_ids(template)),
        ),
        None,
        volume,
    )


class Server:
    """What loads and serves, without HTTP."""

    def __init__(self, model: Path, volume: Path, kernel: str) -> None:
        build()
        self.base: BaseModel = load_base(str(model))
        backend = make_backend(self.base, kernel, lambda _: 2**22, threads=2)
        self.runner: ServingRunner = backend.runner
        self.engine = Engine(self.runner, Limits(4, 64), max_context=128, max_waiting=4)
        self.engine.start()
        self.catalogue = VolumeCatalogue(
            self.base,
            volume,
            weights_digest=weights_digest(self.base.checkpoint),
            max_context=128,
            created=1,
            packer=self.runner,
            score=self.score,
        )
        self.desk = AdapterDesk(self.catalogue)

    def score(self, adapter: Any, ids: tuple[int, ...]) -> list[float]:
        return self.engine.between_steps(lambda: score(self.runner, adapter, ids)).result(60)

    def look(self) -> AdapterInfo:
        self.desk.refresh()
        (row,) = self.desk.describe()
        return row


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers = []

    def start(model: Path, volume: Path, kernel: str = "auto") -> Server:
        servers.append(Server(model, volume, kernel))
        return servers[-1]

    yield start
    for server in servers:
        server.engine.stop()


def worst(server: Server, version: Path) -> float:
    """The largest difference in nats."""
    fields = json.loads((version / "manifest.json").read_text())["probe"]
    lease = server.catalogue.acquire(server.catalogue.find("talk")).result(60)
    computed = server.score(lease.adapter, tuple(fields["token_ids"]))
    lease.release()
    return max(abs(a - b) for a, b in zip(computed, fields["logprobs"], strict=True))


@pytest.mark.parametrize("kernel", ["auto", "plain", "torch"])
@pytest.mark.parametrize("family", ["llama-3.2", "qwen2", "qwen3"])
def test_what_the_trainer_publishes_the_server_computes(
    tmp_path: Path, serve: Callable[..., Server], family: str, kernel: str
) -> None:
    write_model(tmp_path / "model", family)
    version = published(tmp_path / "model", tmp_path / "adapters", r=16, use_rslora=True)
    server = serve(tmp_path / "model", tmp_path / "adapters", kernel)
    row = server.look()
    assert (row.state, row.probe) == ("loaded", "passed")
    assert worst(server, version) < TOLERANCE / 50


@pytest.mark.model
def test_the_embedded_models_rounding_is_far_from_the_tolerance(
    embedded_model: Path, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    version = published(embedded_model, tmp_path / "adapters", r=16, lora_alpha=16)
    server = serve(embedded_model, tmp_path / "adapters")
    assert server.look().probe == "passed"
    assert worst(server, version) < TOLERANCE / 5


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return edit


B0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
B1 = B0.replace("layers.0", "layers.1")


def sign_again(folder: Path) -> None:
    """The manifest's digests made right for what now lies there: all that digests can tell is in order."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "damage",
    [
        edit_config(lora_alpha=8.4),  # was 8
        edit_config(use_rslora=True),
        edit_config(alpha_pattern={"down_proj": 16}),
        edit_tensors(lambda t: t[B0].mul_(1.1)),
        edit_tensors(lambda t: t[B0].zero_()),
        edit_tensors(lambda t: t.update({B0: t[B1], B1: t[B0]})),
        edit_tensors(lambda t: t[B0].neg_()),
        edit_tensors(lambda t: t[B0][0].add_(0.5)),
    ],
    ids=["alpha 5 %", "rslora", "one alpha", "one matrix 10 %", "one matrix lost", "swapped", "sign", "one row"],
)  # fmt: skip
def test_an_adapter_that_computes_something_else_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    serve: Callable[..., Server],
    damage: Callable[[Path], None],
) -> None:
    version = published(tiny_model, tmp_path / "adapters")
    damage(version)
    sign_again(version)
    server = serve(tiny_model, tmp_path / "adapters")
    row = server.look()
    assert row.state == "refused"
    assert row.reason is not None
    assert "does not compute what was published" in row.reason
    assert server.desk.stats.refused == {"probe": 1}
    assert server.desk.stats.resident == 0, "what was tried does not stay in memory"
    assert [info.id for info in server.catalogue.list()] == ["base"]


def test_signing_again_alone_is_no_reason(
    tiny_model: Path, tmp_path: Path, serve: Callable[..., Server]
) -> None:
    version = published(tiny_model, tmp_path / "adapters")
    edit_config(lora_dropout=0.5)(version)  # of no effect on what is computed
    sign_again(version)
    assert serve(tiny_model, tmp_path / "adapters").look().probe == "passed"


def edit_probe(probe: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest.update(probe=probe)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda manifest: manifest.pop("probe"), "before there were probes"),
        (edit_probe(None), "before there were probes"),
        (edit_probe({"format": "lorachat-probe/1", "absent": "no float base"}), "no float base"),
        (edit_probe({"format": "lorachat-probe/9", "x": 1}), "lorachat-probe/9"),
    ],
)
def test_without_a_probe_a_version_is_served_and_that_is_said(
    tiny_model: Path,
    tmp_path: Path,
    serve: Callable[..., Server],
    caplog: pytest.LogCaptureFixture,
    change: Callable[[dict[str, Any]], object],
    told: str,
) -> None:
    path = published(tiny_model, tmp_path / "adapters") / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with caplog.at_level("INFO"):
        row = serve(tiny_model, tmp_path / "adapters").look()
    assert row.state == "loaded"
    assert row.probe is not None
    assert told in row.probe
    assert "was not probed" in caplog.text


def test_a_run_that_computed_none_says_why(tiny_model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_peft_adapter(tiny_model, adapter)
    record = dataclasses.replace(run_record(), probe=PublishedProbe(absent="no float base"))
    folder = publish(adapter, record, None, tmp_path / "adapters")
    fields = json.loads((folder / "manifest.json").read_text())["probe"]
    assert read_probe(fields, 272) == NoProbe("no float base")


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": [1, 272]},
        {"token_ids": [1, -1]},
        {"token_ids": [1, 1.5]},
        {"token_ids": [1, True]},
        {"token_ids": [1]},
        {"token_ids": list(range(3, 68)), "logprobs": [-1.0] * 64},
        {"token_ids": None},
        {"logprobs": [-1.0, -1.0]},
        {"logprobs": [float("nan")]},
        {"logprobs": ["-1"]},
        {"logprobs": [0.5]},
    ],
    ids=str,
)
def test_a_probe_that_cannot_be_one_is_refused(wrong: dict[str, Any]) -> None:
    from server.errors import AdapterError

    right = {"format": "lorachat-probe/1", "token_ids": [1, 271], "logprobs": [-1.0]}
    assert read_probe(right, 272) == Probe((1, 271), (-1.0,))
    with pytest.raises(AdapterError, match="a probe that is none"):
        read_probe(right | wrong, 272)
