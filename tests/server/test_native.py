"""The native decoder's own promises: exact storage, one result in every variant's own terms, threads, its build."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from server.model.native_runner import NativeRunner, StoredWeights
from server.native.build import BuildError, build, library_path, variants_here
from server.native.library import LibraryMissingError, load_library
from server.types import SamplingParams
from tests.conftest import ROOT
from tests.server.conformance.models import build_adapter, build_model, log_softmax, oracle_logits
from tests.server.conformance.text import (
    Blocks,
    Text,
    distributions,
    everything,
    generate,
    step,
    tokens,
)
from tests.server.test_native_runner import native_runner

BUDGET = 64 * 32 * 8192


@pytest.mark.parametrize("variant", variants_here())
@pytest.mark.parametrize("spec", ["llama", "llama in bfloat16", "llama, heads of 80", "qwen3"])
def test_every_variant_equals_transformers(variant: str, spec: str) -> None:
    model = build_model(spec)
    runner = native_runner(model, BUDGET, variant)
    assert runner.kernel == load_library(variant).variant
    prompt = tokens(70)
    text = Text(Blocks(runner), prompt, params=everything())
    step(runner, [text], [text.row()])
    expected = log_softmax(oracle_logits(model.oracle, prompt))
    np.testing.assert_allclose(distributions(text), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", variants_here())
def test_the_number_of_threads_changes_no_bit(variant: str) -> None:
    said = []
    for threads in (1, 2, 3, 5):
        runner = native_runner(build_model(), BUDGET, variant, threads)
        blocks = Blocks(runner)
        adapters = [None, build_adapter("all modules")[1], build_adapter("q and v only")[1]]
        texts = [
            Text(
                blocks,
                tokens(3 + 20 * i, seed=i),
                adapter=adapters[i % 3],
                params=everything(),
                seed=i,
            )
            for i in range(6)
        ]
        generate(runner, texts, 6)
        said.append([(text.output, text.scored, text.logprobs) for text in texts])
    assert all(other == said[0] for other in said[1:])


def test_what_bfloat16_holds_exactly_is_stored_so_and_nothing_else_is() -> None:
    exact = native_runner(build_model("llama in bfloat16"), BUDGET)
    assert (exact.weights.kind, exact.weights.matrices_float32) == ("bfloat16-exact", 0)
    full = native_runner(build_model(), BUDGET)
    assert (full.weights.kind, full.weights.matrices_bf16) == ("float32", 0)
    values = sum(
        a.size
        for name in build_model().checkpoint.names
        if (a := build_model().checkpoint.read(name)).ndim == 2
    )
    assert full.weights.bytes_float32 == 4 * values
    assert exact.weights.bytes_bf16 == 2 * values


def test_a_single_value_that_bfloat16_cannot_hold_keeps_its_matrix_in_float32() -> None:
    model = build_model("llama in bfloat16")
    name = "model.layers.1.mlp.up_proj.weight"

    class Odd:
        def read(self, asked: str) -> np.ndarray:
            values = model.checkpoint.read(asked)
            if asked != name:
                return values
            floats = (values.astype(np.uint32) << 16).view(np.float32)
            floats[-1, -1] = np.float32(0.1)
            return floats

    class Base:
        config, cos, sin, checkpoint = model.config, model.cos, model.sin, Odd()

    build()
    runner = NativeRunner(load_library(), Base(), kv_cache_bytes=BUDGET, threads=1)
    assert (runner.weights.kind, runner.weights.matrices_float32) == ("mixed", 1)
    assert runner.weights.exceptions == name


def test_only_the_first_matrices_that_stayed_float32_are_named() -> None:
    names = tuple("abcdefg")
    assert StoredWeights(8, 8, 1, names).exceptions == "a, b, c, d and 3 more"
    assert StoredWeights(8, 8, 1, names[:4]).exceptions == "a, b, c, d"
    for alike in (StoredWeights(0, 8, 0, names), StoredWeights(8, 0, 7, ())):
        assert alike.exceptions == ""


def test_bits_and_floats_of_the_same_values_give_the_same_bits() -> None:
    """A file in bfloat16, and the same weights widened to float32 in a file."""
    model = build_model("llama in bfloat16")

    class Widened:
        def read(self, name: str) -> np.ndarray:
            values = model.checkpoint.read(name)
            return (
                (values.astype(np.uint32) << 16).view(np.float32)
                if values.dtype == np.uint16
                else values
            )

    class Base:
        config, cos, sin, checkpoint = model.config, model.cos, model.sin, Widened()

    runners = [
        native_runner(model, BUDGET),
        NativeRunner(load_library(), Base(), kv_cache_bytes=BUDGET, threads=2),
    ]
    said = []
    for runner in runners:
        text = Text(Blocks(runner), tokens(50), params=everything())
        step(runner, [text], [text.row()])
        said.append(distributions(text))
    np.testing.assert_array_equal(said[0], said[1])


def test_a_near_zero_temperature_is_greedy_and_not_a_division_by_zero() -> None:
    runner = native_runner(build_model(), BUDGET)
    blocks = Blocks(runner)
    greedy, cold = (
        Text(blocks, tokens(20), params=SamplingParams(temperature=t), seed=3) for t in (0, 1e-30)
    )
    generate(runner, [greedy, cold], 10)
    assert greedy.output == cold.output


def test_without_a_compiler_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BuildError, match="Install one"):
        build(tmp_path / "libraries")
    with pytest.raises(LibraryMissingError, match="make native"):
        load_library(folder=tmp_path / "libraries")


def test_the_command_does_nothing_twice_and_fails_only_if_asked_to(tmp_path: Path) -> None:
    build()
    before = {path: path.stat().st_mtime_ns for path in map(library_path, variants_here())}
    command = [sys.executable, "-m", "server.native"]
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not again.stderr
    assert before == {path: path.stat().st_mtime_ns for path in before}
    copy = tmp_path / "server"
    shutil.copytree(ROOT / "server", copy, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    environment = {"PATH": str(tmp_path)}
    for options, code in (([], 1), (["--optional"], 0)):
        result = subprocess.run(
            [*command, *options],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, "no C++ compiler" in result.stderr) == (code, True)
