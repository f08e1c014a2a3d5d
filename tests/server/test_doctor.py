"""Each thing that can be wrong, made wrong: the doctor finds it and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from server.model.catalogue import VolumeCatalogue
from server.model.digest import weights_digest
from server.model.loader import BaseModel, load_base
from server.operate import doctor, host, model_checks
from server.operate.bandwidth import read_bandwidth
from server.operate.finding import Finding, as_json, fail, failed, ok, table, warn
from tests.conftest import ROOT
from tests.models import write_manifest, write_peft_adapter

GIB = 2**30
VERSION = "20261123-080000-aaaaaa"


def levels(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


def only(findings: Iterable[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base(str(tiny_model))


@pytest.fixture
def copied(tiny_model: Path, tmp_path: Path) -> Path:
    """A model to break."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    return folder


# --- the machine


def test_threads_are_held_against_the_quota(tmp_path: Path) -> None:
    quota, stat = tmp_path / "cpu.max", tmp_path / "cpu.stat"
    quota.write_text("150000 100000\n")
    stat.write_text("usage_usec 1\nnr_periods 100\nnr_throttled 40\n")
    found = list(host.check_cores(None, quota, stat))
    assert levels(found)["throttling"] == "WARN"
    assert "40%" in only(found, "throttling").said
    threads = only(found, "threads")  # two threads are taken for one and a half cores
    if "2 threads" in threads.said:
        assert (threads.level, "whole cores" in threads.advice) == ("WARN", True)
    assert only(host.check_cores(1, quota, stat), "threads").level == "OK"
    assert only(host.check_cores(1000, tmp_path / "no", tmp_path / "no"), "threads").level == "WARN"
    stat.write_text("nr_periods 100\nnr_throttled 1\n")
    assert "throttling" not in levels(host.check_cores(1, quota, stat))


def test_a_port_that_is_taken_is_found_and_so_is_an_address_that_is_not_ours() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = only(host.check_port("port", "127.0.0.1", port), "port")
        assert found.level == "FAIL"
        assert found.advice
    assert only(host.check_port("port", "127.0.0.1", port), "port").level == "OK"
    assert only(host.check_port("port", "203.0.113.9", 0), "port").level == "FAIL"


@pytest.mark.parametrize(
    ("address", "has_keys", "level"),
    [("127.0.0.1", False, "OK"), ("0.0.0.0", True, "OK"), ("0.0.0.0", False, "WARN")],
)
def test_an_open_door_is_a_warning(address: str, has_keys: bool, level: str) -> None:
    assert only(host.check_access(address, has_keys=has_keys), "access").level == level


def test_little_disk_and_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert levels(host.check_disk(tmp_path / "not" / "yet", None)) == {"cache": "OK"}
    assert levels(host.check_disk(Path(os.devnull), None)) == {"cache": "WARN"}
    for free, level in ((10 * 2**20, "FAIL"), (200 * 2**20, "WARN"), (GIB * 2, None)):
        usage = shutil._ntuple_diskusage(100 * GIB, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(host.shutil, "disk_usage", lambda _, usage=usage: usage)
        found = levels(host.check_disk(tmp_path, tmp_path))
        assert found.get("disk of the cache") == found.get("disk of the adapters") == level


def test_a_clock_that_lost_its_time_and_few_open_files() -> None:
    assert levels(host.check_clock(0.0)) == {"clock": "WARN"}
    assert levels(host.check_clock()) == {"clock": "OK"}
    assert levels(host.check_files(256)) == {"open files": "WARN"}
    assert levels(host.check_files(65536)) == {"open files": "OK"}


# --- the model


def examine_base(base: BaseModel) -> list[Finding]:
    return list(model_checks.check_base(base, lambda: weights_digest(base.checkpoint)))


def test_a_whole_model_is_fine(base: BaseModel) -> None:
    assert set(levels(examine_base(base)).values()) == {"OK"}


def test_a_model_without_a_template_or_with_a_broken_one(copied: Path) -> None:
    config = copied / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    template = copied / "chat_template.jinja"
    template.unlink(missing_ok=True)
    found = only(examine_base(load_base(str(copied))), "chat template")
    assert (found.level, "instruct" in found.advice) == ("WARN", True)
    template.write_text("{{ raise_exception('no greetings') }}")
    found = only(examine_base(load_base(str(copied))), "chat template")
    assert found.level == "FAIL"
    assert "no greetings" in found.said


def test_a_tokenizer_that_loses_text(copied: Path) -> None:
    path = copied / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))
    assert only(examine_base(load_base(str(copied))), "tokenizer").level == "WARN"


def test_weights_that_cannot_be_read(base: BaseModel) -> None:
    def broken() -> str:
        raise OSError(5, "Input/output error")

    found = only(model_checks.check_base(base, broken), "weights")
    assert (found.level, "Input/output error" in found.said) == ("FAIL", True)


def test_how_weights_will_be_stored_is_known_before_they_are(base: BaseModel) -> None:
    values = base.checkpoint.num_values
    assert model_checks.expected_weight_bytes(base, "torch") == 4 * values
    assert model_checks.expected_weight_bytes(base, "auto") in (2 * values, 4 * values)


def test_memory_is_added_up_and_held_against_the_limit(base: BaseModel) -> None:
    token = base.config.cache_bytes_per_token

    def found(
        *, cache: int, limit: int = 10 * GIB, free: int | None = None, adapters: int = 0
    ) -> dict[str, str]:
        return levels(
            model_checks.check_memory(
                base,
                weight_bytes=GIB,
                cache_bytes=cache,
                adapter_bytes=adapters,
                adapter_budget=GIB,
                least_tokens=16,
                limit=limit,
                free=free,
            )
        )

    enough = 4 * base.max_context * token
    assert found(cache=enough) == {"memory": "OK", "KV cache": "OK"}
    assert found(cache=enough, free=GIB)["free memory"] == "WARN"
    assert found(cache=enough, limit=GIB) == {"memory": "FAIL"}
    assert found(cache=-5) == {"memory": "FAIL"}
    assert found(cache=token * 20) == {"memory": "OK", "KV cache": "WARN"}
    assert found(cache=token * 15) == {"memory": "FAIL"}, "the server would not start"
    # More adapters than memory take turns in it, and are no reason not to start.
    many = found(cache=enough, adapters=500 * GIB)
    assert many == {"memory": "OK", "adapter memory": "WARN", "KV cache": "OK"}


def test_a_slow_memory_is_a_warning_in_tokens_per_second() -> None:
    found = only(model_checks.check_bandwidth(12e9, int(6.4e9), 2), "bandwidth")
    assert (found.level, "1.9 tokens/s" in found.said) == ("WARN", True)
    assert only(model_checks.check_bandwidth(12e9, int(0.5e9), 2), "bandwidth").level == "OK"


def test_bandwidth_is_what_a_memory_can_have() -> None:
    assert 1e8 < read_bandwidth(1, seconds=0.05, elements=2**24) < 1e13


def test_an_embedding_that_is_no_output_matrix_is_not_read_whole(base: BaseModel) -> None:
    assert model_checks.bytes_per_token(base, 1000) == 1000


def test_without_compiled_kernels_it_says_what_to_install(tmp_path: Path) -> None:
    assert levels(model_checks.check_kernel("torch")) == {"kernel": "WARN"}
    found = only(model_checks.check_kernel("auto", tmp_path), "kernel")
    assert (found.level, "C++ compiler" in found.advice) == ("WARN", True)
    assert only(model_checks.check_kernel("plain", tmp_path), "kernel").level == "FAIL"


# --- adapters


@pytest.fixture(scope="session")
def peft_folder(tiny_model: Path, once: Callable[..., Path]) -> Path:
    return once("catalogue-adapter", lambda folder: write_peft_adapter(tiny_model, folder))


def volume_with(root: Path, peft_folder: Path, digest: str, **changes: Any) -> Path:
    folder = root / "talk" / VERSION
    shutil.copytree(peft_folder, folder, ignore=shutil.ignore_patterns(".done"))
    write_manifest(folder, weights_digest=digest, **changes)
    return folder


def test_each_adapter_is_fine_or_refused_with_its_reason(
    base: BaseModel, peft_folder: Path, tmp_path: Path
) -> None:
    digest = weights_digest(base.checkpoint)

    def found(root: Path) -> list[Finding]:
        volume = VolumeCatalogue(base, root, weights_digest=digest, max_context=512, created=1)
        return list(model_checks.check_adapters(volume, root))

    assert levels(found(tmp_path / "absent")) == {"adapters": "WARN"}
    root = tmp_path / "adapters"
    folder = volume_with(root, peft_folder, digest)
    (fine,) = found(root)
    assert (fine.level, VERSION in fine.said) == ("OK", True)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x99")
    (refused,) = found(root)
    assert (refused.level, "refused" in refused.said) == ("FAIL", True)
    assert refused.advice
    assert doctor.adapter_bytes(root) == weights.stat().st_size


# --- the whole


def test_findings_are_shown_with_what_to_do() -> None:
    found = [ok("a", "fine"), warn("bb", "odd", "look"), fail("c", "broken", "mend it")]
    lines = table(found).splitlines()
    assert lines[0].split() == ["OK", "a", "fine"]
    assert lines[2].strip() == "→ look"
    assert lines[-1] == "1 OK, 1 WARN, 1 FAIL"
    assert failed(found)
    assert not failed(found[:2])
    assert json.loads(as_json(found))["findings"][2]["advice"] == "mend it"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", "doctor", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_command_ends_with_0_where_it_can_serve_and_with_1_where_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACHAT_CACHE", str(tmp_path / "cache"))
    # Not the checkout's own volume, which may hold anything.
    good_flags = ("--model", str(tiny_model), "--port", "0", "--adapters", str(tmp_path / "none"))
    good = run(*good_flags, "--json")
    assert good.returncode == 0, good.stdout + good.stderr
    shown = json.loads(good.stdout)
    assert shown["ok"] is True
    checks = {finding["check"] for finding in shown["findings"]}
    assert checks >= {"clock", "threads", "port", "access", "cache", "kernel", "model", "weights",
                      "tokenizer", "chat template", "memory", "KV cache", "bandwidth"}  # fmt: skip
    bad = run("--model", str(tmp_path / "nothing"), "--port", "0")
    assert bad.returncode == 1
    assert "FAIL  model" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr
    wrong = run("--model", str(tiny_model), "--port", "x")
    assert wrong.returncode == 2
    keys = tmp_path / "keys.toml"
    keys.write_text("this is no key file")
    barred = run("--model", str(tiny_model), "--port", "0", "--api-key-file", str(keys))
    assert barred.returncode == 1
    assert "FAIL  access" in barred.stdout
    assert str(keys) in barred.stdout
    small = run(*good_flags, "--kv-cache-gib", "1000")
    assert small.returncode == 1
    assert "do not fit" in small.stdout
