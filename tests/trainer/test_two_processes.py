"""Two processes share the rows of a step, and learn what one learns."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.trainer.command import Command
from tests.trainer.recipes import tiny_recipe
from trainer.errors import ConfigError
from trainer.processes import divide_step


def test_the_rows_of_a_step_are_shared_out_evenly() -> None:
    assert divide_step(16, 4, 1) == (4, 4)
    assert divide_step(16, 4, 2) == (4, 2)
    assert divide_step(16, 4, 8) == (2, 1)
    assert divide_step(6, 4, 1) == (3, 2)
    with pytest.raises(ConfigError, match="cannot be shared evenly by 3 processes"):
        divide_step(16, 4, 3)


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1")
# Its name for several processes of one machine, with GPUs or without.
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2")
ACCELERATE += ("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no")


@pytest.mark.parametrize(
    ("padding_free", "launcher", "port_flag", "module_flag"),
    [
        ("never", TORCHRUN, "--master-port", "-m"),
        ("always", ACCELERATE, "--main_process_port", "--module"),
    ],
)
def test_the_losses_are_those_of_one(
    tiny_model: Path,
    tmp_path: Path,
    padding_free: str,
    launcher: tuple[str, ...],
    port_flag: str,
    module_flag: str,
) -> None:
    recipe = tiny_recipe(
        tiny_model,
        tmp_path,
        rows=60,
        training={
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": 6,
            "save_steps": 3,
            "logging_steps": 1,
            "padding_free": padding_free,
        },
    )
    one, two = Command(tmp_path / "one", recipe), Command(tmp_path / "two", recipe)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, output = two.run(launcher=(*launcher, f"{port_flag}={port}", module_flag, "trainer"))
    assert code == 0, output
    code, output = one.run()
    assert code == 0, output
    for alone, shared in zip(one.losses(), two.losses(), strict=True):
        assert shared[0] == alone[0]
        for value, expected in zip(shared[1:], alone[1:], strict=True):
            assert value == (expected and pytest.approx(expected, rel=2e-4))
    assert len(list((two.volume / "tiny").glob("2*"))) == 1
