"""Models for the tests, each built once: a tiny random one, and the embedded one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
from filelock import FileLock

# Before anything imports torch or a hub library: tests are offline, and two workers share two cores.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    GRADIO_ANALYTICS_ENABLED="False",
    OMP_NUM_THREADS="1",
    LORACHAT_PREPARED="",  # nothing of a test is kept for the next
)

# In CI the same examples at every run: what stops a change there should come from the change. Elsewhere new ones.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def once(shared: Path) -> Callable[[str, Callable[[Path], object]], Path]:
    """once(name, build) -> a folder that build(folder) has filled, by whichever worker came first."""

    def get(name: str, build: Callable[[Path], object]) -> Path:
        folder = shared / name
        with FileLock(shared / f"{name}.lock"):
            done = folder / ".done"
            if not done.exists():
                folder.mkdir(exist_ok=True)
                build(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_model(once: Callable[..., Path]) -> Path:
    """A random two-layer Llama with grouped-query attention and a byte-level ChatML tokenizer."""
    from tests.models import write_tiny_model

    return once("tiny-model", write_tiny_model)


@pytest.fixture(scope="session")
def embedded_model(shared: Path) -> Path:
    """The embedded 135M model as `make model` prepares it."""
    from demo.model import prepare

    cache = Path(os.environ.get("LORACHAT_CACHE") or ROOT / ".cache")
    with FileLock(shared / "embedded-model.lock"):
        return prepare(cache)
