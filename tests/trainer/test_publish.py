"""A reader of the volume sees whole versions only, each exactly what docs/contracts.md describes."""

from __future__ import annotations

import copy
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from run_records import make_adapter, run_record
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from volumes import check_version, visible_versions

from trainer import durable
from trainer import publish as publishing
from trainer.publish import PublishError, publish

NOW = datetime(2026, 11, 23, 8, 16, 42, 987654, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "report"
    (folder / "nested").mkdir(parents=True)
    for name in (
        "report.html",
        "run.json",
        "losses.csv",
        "loss.png",
        "notes.pkl",
        ".hidden.json",
        "nested/x.csv",
    ):
        (folder / name).write_text(f"content of {name}")
    return folder


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


def manifest_of(version: Path) -> dict[str, Any]:
    return json.loads((version / "manifest.json").read_text())


def test_a_version_is_what_the_contract_says(adapter: Path, report: Path, volume: Path) -> None:
    version = publish(adapter, run_record(), report, volume, now=NOW)

    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert (
        version
        == volume / "smalltalk" / f"20261123-081642-{hashlib.sha256(weights).hexdigest()[:6]}"
    )
    check_version(version)
    assert (version / "adapter_model.safetensors").read_bytes() == weights
    assert (volume / "smalltalk" / "latest").readlink() == Path(version.name)
    assert sorted(os.listdir(volume / "smalltalk")) == [version.name, "latest"]
    manifest = manifest_of(version)
    assert manifest["format"] == "lorachat-adapter/1"
    assert (manifest["name"], manifest["version"]) == ("smalltalk", version.name)
    assert manifest["created"] == "2026-11-23T08:16:42Z"
    assert manifest["base"] == {
        "id": "unsloth/Llama-3.2-3B-Instruct",
        "revision": "889b1ae5cd1ee3a5c2fd4eec5b6fd0cbe8b2a4d3",
        "architecture": "LlamaForCausalLM",
        "weights_digest": "sha256:" + "ab12" * 16,
        "trained_on": {
            "id": "unsloth/llama-3.2-3b-instruct-unsloth-bnb-4bit",
            "revision": None,
            "quantization": "nf4",
        },
    }
    template = (adapter / "chat_template.jinja").read_bytes()
    assert manifest["chat_template"] == {
        "file": "chat_template.jinja",
        "sha256": hashlib.sha256(template).hexdigest(),
    }
    assert manifest["stop_token_ids"] == [128001, 128008, 128009]
    assert manifest["adapter"] == {
        "rank": 4,
        "alpha": 16,
        "rslora": False,
        "target_modules": ["q_proj", "v_proj"],  # the configuration holds a pattern
        "parameters": 2 * 2 * 2 * 32,
    }
    assert manifest["recipe"]["lora"]["r"] == 16
    assert manifest["versions"]["torch"] == "2.13.0"
    metrics = manifest["metrics"]
    assert metrics["held_out_loss"]["all"] == {
        "base": 1.11,
        "tuned": 0.976,
        "rows": 1440,
        "tokens": 753793,
    }
    assert metrics["final_train_loss"] == 1.0912
    assert metrics["wall_seconds"] == 4023.4
    assert metrics["tokens_per_second"] == 811.8
    assert metrics["peak_memory"] == {"device": "Tesla T4", "reserved_gb": 6.531, "total_gb": 15.64}


def test_only_known_kinds_of_file_are_published(adapter: Path, report: Path, volume: Path) -> None:
    version = publish(adapter, run_record(), report, volume)

    assert sorted(manifest_of(version)["files"]) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "report/loss.png",
        "report/losses.csv",
        "report/report.html",
        "report/run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    check_version(version)
    assert "PEFT writes" not in (version / "README.md").read_text()


def test_the_configuration_names_the_float_base(adapter: Path, volume: Path) -> None:
    version = publish(adapter, run_record(), None, volume)

    published = json.loads((version / "adapter_config.json").read_text())
    original = json.loads((adapter / "adapter_config.json").read_text())
    changed = {key for key in published if published[key] != original.get(key)}
    assert changed == {"base_model_name_or_path", "revision"}
    assert published["base_model_name_or_path"] == "unsloth/Llama-3.2-3B-Instruct"
    assert published["revision"] == "889b1ae5cd1ee3a5c2fd4eec5b6fd0cbe8b2a4d3"
    assert "4bit" in original["base_model_name_or_path"]  # the folder given is left as it was


def test_peft_loads_what_was_published(tmp_path: Path, volume: Path) -> None:
    torch.manual_seed(0)
    base = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    settings = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    trained = get_peft_model(copy.deepcopy(base), settings).eval()
    adapter = make_adapter(tmp_path / "adapter")
    trained.save_pretrained(adapter, save_embedding_layers=False)
    token_ids = torch.arange(12).reshape(1, 12)

    version = publish(adapter, run_record(), None, volume)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), version).eval()

    with torch.no_grad():
        expected = trained(token_ids).logits
        assert torch.equal(loaded(token_ids).logits, expected)
        assert not torch.allclose(base.eval()(token_ids).logits, expected)
    assert manifest_of(version)["adapter"]["target_modules"] == ["q_proj", "up_proj"]


def test_an_unknown_revision_does_not_leave_that_of_the_quantised_repository(
    adapter: Path, volume: Path
) -> None:
    base = dataclasses.replace(run_record().base, revision=None)

    version = publish(adapter, run_record(base=base), None, volume)

    assert json.loads((version / "adapter_config.json").read_text())["revision"] is None


@pytest.mark.parametrize(
    "base_id",
    [
        "unsloth/llama-3.2-3b-instruct-unsloth-bnb-4bit",
        "unsloth/Llama-3.2-3B-Instruct-bnb-4bit",
        "someone/model-4bit",
        "someone/Model-GPTQ",
        "someone/model-AWQ-v2",
    ],
)
def test_a_quantised_base_is_refused(base_id: str, adapter: Path, volume: Path) -> None:
    base = dataclasses.replace(run_record().base, id=base_id)

    with pytest.raises(PublishError, match="float model"):
        publish(adapter, run_record(base=base), None, volume)

    assert not volume.exists()


@pytest.mark.parametrize(
    "name", ["base", "", ".hidden", "-x", "a/b", "..", "a" * 65, "naïve", "a b", "a\n"]
)
def test_names_outside_the_rule_are_refused(name: str, adapter: Path, volume: Path) -> None:
    with pytest.raises(PublishError, match="name"):
        publish(adapter, run_record(name=name), None, volume)

    assert not volume.exists()


@pytest.mark.parametrize("name", ["a", "Base", "small-talk_2.1", "a" * 64])
def test_names_inside_the_rule_are_taken(name: str, adapter: Path, volume: Path) -> None:
    assert publish(adapter, run_record(name=name), None, volume).parent == volume / name


@pytest.mark.parametrize(
    "missing",
    ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "chat_template.jinja"],
)
def test_an_incomplete_adapter_is_refused(missing: str, adapter: Path, volume: Path) -> None:
    (adapter / missing).unlink()

    with pytest.raises(PublishError, match=missing):
        publish(adapter, run_record(), None, volume)


def test_a_pickle_is_no_adapter(adapter: Path, volume: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")

    with pytest.raises(PublishError, match="pickle"):
        publish(adapter, run_record(), None, volume)


def test_a_diverged_adapter_is_refused(adapter: Path, volume: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = torch.nan
    save_file(tensors, adapter / "adapter_model.safetensors")

    with pytest.raises(PublishError, match="diverged"):
        publish(adapter, run_record(), None, volume)

    assert visible_versions(volume / "smalltalk") == []


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\xff" * 64])
def test_damaged_weights_are_refused(content: bytes, adapter: Path, volume: Path) -> None:
    (adapter / "adapter_model.safetensors").write_bytes(content)

    with pytest.raises(PublishError, match="safetensors"):
        publish(adapter, run_record(), None, volume)

    assert os.listdir(volume / "smalltalk") == []


def test_another_user_can_read_it_whatever_the_umask(
    adapter: Path, report: Path, volume: Path
) -> None:
    for path in adapter.iterdir():
        path.chmod(0o600)
    before = os.umask(0o077)
    try:
        version = publish(adapter, run_record(), report, volume)
    finally:
        os.umask(before)

    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [volume, *volume.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o755}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o644}
    assert (version / "report").is_dir()


def test_a_later_version_becomes_the_latest_and_leaves_the_earlier_alone(
    tmp_path: Path, volume: Path
) -> None:
    first = publish(make_adapter(tmp_path / "a", seed=1), run_record(), None, volume, now=NOW)
    before = {path: path.stat() for path in first.rglob("*")}

    second = publish(
        make_adapter(tmp_path / "b", seed=2),
        run_record(),
        None,
        volume,
        now=NOW + timedelta(seconds=1),
    )

    assert visible_versions(first.parent) == sorted([first.name, second.name])
    assert (first.parent / "latest").resolve() == second.resolve()
    assert {path: path.stat() for path in first.rglob("*")} == before


def test_the_same_adapter_in_the_same_second_is_refused_and_changes_nothing(
    adapter: Path, volume: Path
) -> None:
    first = publish(adapter, run_record(), None, volume, now=NOW)
    content = (first / "manifest.json").read_bytes()

    with pytest.raises(PublishError, match="exists already"):
        publish(adapter, run_record(steps=41), None, volume, now=NOW)

    assert (first / "manifest.json").read_bytes() == content
    assert sorted(os.listdir(first.parent)) == [first.name, "latest"]


def test_a_latest_that_is_no_link_is_refused_before_anything_is_written(
    adapter: Path, volume: Path
) -> None:
    (volume / "smalltalk" / "latest").mkdir(parents=True)

    with pytest.raises(PublishError, match="not a symbolic link"):
        publish(adapter, run_record(), None, volume)

    assert os.listdir(volume / "smalltalk") == ["latest"]


def test_a_dangling_latest_is_mended(adapter: Path, volume: Path) -> None:
    home = volume / "smalltalk"
    home.mkdir(parents=True)
    (home / "latest").symlink_to("20200101-000000-abcdef")

    version = publish(adapter, run_record(), None, volume)

    assert (home / "latest").resolve() == version.resolve()


@pytest.mark.parametrize("failing_write", range(8))
def test_a_full_disk_is_a_clear_error_and_leaves_no_version(
    failing_write: int, adapter: Path, report: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = publish(adapter, run_record(), report, volume, now=NOW)
    flushed = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed > failing_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(PublishError, match=r"full.*nothing was published"):
        publish(adapter, run_record(), report, volume, now=NOW + timedelta(hours=1))
    monkeypatch.undo()

    assert sorted(os.listdir(volume / "smalltalk")) == [earlier.name, "latest"]
    assert visible_versions(volume / "smalltalk") == [earlier.name]


def test_a_link_that_cannot_be_moved_is_told_apart_from_a_failed_publish(
    adapter: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.Path, "replace", full)
    with pytest.raises(PublishError, match="is published whole, but"):
        publish(adapter, run_record(), None, volume)

    home = volume / "smalltalk"
    assert visible_versions(home) == os.listdir(
        home
    )  # the version alone, no link, nothing half-made


def test_a_volume_that_cannot_be_written_is_a_clear_error(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(PublishError, match="nothing was published"):
        publish(adapter, run_record(), None, tmp_path / "file")


def test_the_manifest_is_written_last_and_everything_is_flushed_before_the_rename(
    adapter: Path, report: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        order.append("RENAME")
        return rename(self, target)

    (volume / "smalltalk").mkdir(parents=True)
    monkeypatch.setattr(durable.os, "fsync", watched_fsync)
    monkeypatch.setattr(publishing.Path, "rename", watched_rename)
    version = publish(adapter, run_record(), report, volume)

    renamed = order.index("RENAME")
    files = [path.name for path in version.rglob("*") if path.is_file()]
    assert set(files) <= set(order[:renamed])
    assert order[renamed - 2] == "manifest.json"
    assert order[renamed - 1].startswith(".tmp-")  # the version's folder
    assert "report" in order[: renamed - 2]
    assert order[renamed + 1 :] == ["smalltalk", "smalltalk"]  # the version's name, then the link


def test_a_job_killed_at_any_system_call_leaves_whole_versions_only(
    adapter: Path, report: Path, volume: Path
) -> None:
    helper = Path(__file__).with_name("publish_and_die.py")
    result = subprocess.run(
        [sys.executable, str(helper), str(adapter), str(report), str(volume)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    # The helper checks every version and the link after every death, and fails at the first that is not whole.
    assert result.returncode == 0, result.stderr
    seen = [json.loads(line) for line in result.stdout.splitlines()]

    assert len(seen) > 100
    assert {"fsync", "rename", "symlink", "replace", "mkdir", "open"} <= {
        state["died_at"] for state in seen
    }
    assert len(seen[0]["versions"]) == 1  # published in peace before the first death
    assert seen[-1]["died_at"] == ""
    assert seen[-1]["latest"] == seen[-1]["versions"][-1] != seen[0]["latest"]
    assert all(state["latest"] for state in seen)
    counts = [len(state["versions"]) for state in seen]
    assert counts == sorted(counts)  # nobody's death takes a version away


def test_versions_published_at_once_all_survive(tmp_path: Path, volume: Path) -> None:
    adapters = [make_adapter(tmp_path / f"adapter-{seed}", seed=seed) for seed in range(6)]

    with ThreadPoolExecutor(6) as pool:
        versions = list(
            pool.map(lambda folder: publish(folder, run_record(), None, volume, now=NOW), adapters)
        )

    assert visible_versions(volume / "smalltalk") == sorted(version.name for version in versions)
    assert (volume / "smalltalk" / "latest").readlink().name in {
        version.name for version in versions
    }


def test_of_one_adapter_published_at_once_one_wins(adapter: Path, volume: Path) -> None:
    def attempt(_: int) -> str:
        try:
            return publish(adapter, run_record(), None, volume, now=NOW).name
        except PublishError:
            return "refused"

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(attempt, range(6)))

    assert outcomes.count("refused") == 5
    assert len(visible_versions(volume / "smalltalk")) == 1


def leave_behind(home: Path, name: str, *, age_hours: float) -> Path:
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text("half")
    then = time.time() - age_hours * 3600
    os.utime(folder, (then, then))
    return folder


def test_leftovers_of_dead_jobs_go_after_a_day_and_nothing_else_does(
    adapter: Path, volume: Path
) -> None:
    home = volume / "smalltalk"
    stale = leave_behind(home, ".tmp-1-dead", age_hours=25)
    young = leave_behind(home, ".tmp-2-perhaps", age_hours=23)
    foreign = leave_behind(home, ".snapshot", age_hours=999)
    link = home / ".tmp-latest"
    link.symlink_to("nowhere")
    os.utime(link, (0, 0), follow_symlinks=False)

    publish(adapter, run_record(), None, volume)

    assert not stale.exists()
    assert not link.is_symlink()
    assert young.exists()
    assert foreign.exists()


def test_the_folder_of_a_live_job_stays_however_old(adapter: Path, volume: Path) -> None:
    live = leave_behind(volume / "smalltalk", ".tmp-1-slow", age_hours=999)
    lock = os.open(live, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        publish(adapter, run_record(), None, volume)
        assert live.exists()
    finally:
        os.close(lock)

    publish(adapter, run_record(), None, volume, now=datetime.now(UTC) + timedelta(seconds=5))
    assert not live.exists()


def test_a_publish_holds_a_lock_on_what_it_writes(
    adapter: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked: list[bool] = []
    copy = publishing.copy_file

    def copy_and_look(source: Path, target: Path) -> durable.Written:
        if target.name == "tokenizer.json":
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locked.append(False)
            except BlockingIOError:
                locked.append(True)
            finally:
                os.close(descriptor)
        return copy(source, target)

    monkeypatch.setattr(publishing, "copy_file", copy_and_look)
    publish(adapter, run_record(), None, volume)

    assert locked == [True]


def test_figures_that_are_not_numbers_leave_the_manifest_valid_json(
    adapter: Path, volume: Path
) -> None:
    version = publish(adapter, run_record(final_train_loss=float("nan")), None, volume)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    manifest = json.loads((version / "manifest.json").read_text(), parse_constant=refuse)
    assert manifest["metrics"]["final_train_loss"] is None


def test_a_run_without_stop_tokens_is_refused(adapter: Path, volume: Path) -> None:
    with pytest.raises(PublishError, match="stop tokens"):
        publish(adapter, run_record(stop_token_ids=()), None, volume)
