"""A disk that is really full, in the middle of the training and at the end: a clear error, and nothing lost but time.

The disks are small tmpfs mounts, which only root can make; elsewhere these tests are skipped.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.trainer.command import Command
from tests.trainer.recipes import tiny_recipe
from tests.trainer.volumes import visible_versions
from trainer.checkpoints import SEAL
from trainer.full_disk import is_full_disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str, str], Path]]:
    """small_disk(name, size) -> the folder of a file system of that size."""
    mounted: list[Path] = []

    def mount(name: str, size: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass
    assert shutil.disk_usage(folder).free == 0
    return ballast


def test_the_last_complete_checkpoint_survives_and_the_run_goes_on_once_there_is_room(
    tiny_model: Path, tmp_path: Path, small_disk: Callable[[str, str], Path]
) -> None:
    recipe = tiny_recipe(
        tiny_model,
        tmp_path,
        rows=60,
        training={"max_steps": 200, "save_steps": 4, "logging_steps": 1},
    )
    undisturbed = Command(tmp_path / "undisturbed", recipe)
    code, output = undisturbed.run()
    assert code == 0, output

    disk = small_disk("disk", "32m")
    command = Command(disk, recipe)
    process = command.start()
    command.wait_for("checkpoints/checkpoint-8/" + SEAL, process)
    ballast = fill(disk)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "Traceback" not in output
    assert "is full. Free some space and start the same command again." in output
    kept = sorted((command.output / "checkpoints").glob("checkpoint-*"))
    assert kept
    assert all((folder / SEAL).is_file() for folder in kept)
    assert not command.volume.exists()

    code, output = command.run()  # still full
    assert code == 75, output
    ballast.unlink()
    code, output = command.run()
    assert code == 0, output
    assert "Going on after step" in output
    assert command.losses() == undisturbed.losses()


def test_a_full_volume_is_told_and_nothing_is_trained_twice(
    tiny_model: Path, tmp_path: Path, small_disk: Callable[[str, str], Path]
) -> None:
    command = Command(tmp_path, tiny_recipe(tiny_model, tmp_path))
    disk = small_disk("adapters", "4m")
    assert disk == command.volume
    ballast = fill(disk)
    code, output = command.run()
    assert code == 75, output
    assert f"The volume {disk} is full; free some space and publish again" in output
    assert "Traceback" not in output
    assert not visible_versions(disk / "tiny")
    ballast.unlink()
    code, output = command.run()
    assert code == 0, output
    assert "Going on after step 12" in output
    assert len(visible_versions(disk / "tiny")) == 1


def test_other_errors_are_no_full_disk() -> None:
    assert is_full_disk(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert is_full_disk(
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    )
    caused = ValueError("could not be saved")
    caused.__cause__ = OSError(errno.ENOSPC, "full")
    assert is_full_disk(caused)
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(RuntimeError("CUDA out of memory"))
