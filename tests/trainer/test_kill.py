"""Killed at any point, told to stop, started twice: the same command ends in the same run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.command import ROOT, Command, losses
from tests.trainer.recipes import tiny_recipe
from trainer.checkpoints import SEAL, newest_sealed, remove_broken, seal
from trainer.config import Recipe


def recipe(tiny_model: Path, folder: Path, **training: object) -> Recipe:
    changes = {"max_steps": 40, "save_steps": 4, "logging_steps": 1, **training}
    return tiny_recipe(tiny_model, folder, rows=60, training=changes)


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(folder, recipe(tiny_model, folder))
    code, output = command.run()
    assert code == 0, output
    return command


def test_killed_and_stopped_it_goes_on_to_the_same_losses(
    tiny_model: Path, tmp_path: Path, undisturbed: Command
) -> None:
    command = Command(tmp_path, recipe(tiny_model, tmp_path))
    process = command.start()
    command.wait_for("checkpoints/checkpoint-8/" + SEAL, process)
    process.kill()
    process.communicate()
    assert not command.volume.exists()
    # What was being written when it died: a folder without a seal, newer than all others.
    (command.output / "checkpoints" / "checkpoint-39").mkdir()

    process = command.start()
    command.wait_for("checkpoints/checkpoint-20/" + SEAL, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "checkpoint-39 is not whole" in output
    assert "Going on after step" in output
    assert "stopped by SIGTERM after step" in output

    code, output = command.run()
    assert code == 0, output
    assert "Going on after step" in output
    assert command.losses() == undisturbed.losses()
    assert len(list((command.volume / "tiny").glob("2*"))) == 1
    assert not (command.output / "checkpoints").exists()


def test_killed_at_any_moment_it_ends_in_the_same_run_and_no_half_version_is_seen(
    tiny_model: Path, tmp_path: Path, undisturbed: Command
) -> None:
    """LORACHAT_KILLS=N kills as often, LORACHAT_SEED=N at other moments."""
    same = Command(tmp_path / "of", recipe(tiny_model, tmp_path))
    kills, seed = os.environ.get("LORACHAT_KILLS", "8"), os.environ.get("LORACHAT_SEED", "1")
    done = subprocess.run(
        [
            *(sys.executable, Path(__file__).parent / "train_and_die.py", kills, seed),
            *(tmp_path / "run", tmp_path / "volume", "--recipe", same.recipe),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(line["killed"] for line in lines) >= int(kills)
    finished = [line for line in lines if not line["killed"]]
    assert finished
    weights = (undisturbed.output / "adapter" / "adapter_model.safetensors").read_bytes()
    for line in finished:
        output = Path(line["output"])
        assert line["code"] == 0, output.with_suffix(".log").read_text()
        assert losses(output) == undisturbed.losses()
        assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    # Every reader saw whole versions only (the child checked them), and never two of one run.
    assert all(len(line["versions"]) <= 1 for line in lines)
    assert all(len(line["versions"]) == 1 for line in finished)
    assert {"saving", "publishing", "concluding", "any"} <= {line["phase"] for line in lines}


def test_what_is_complete_is_not_done_again(undisturbed: Command) -> None:
    code, output = undisturbed.run()
    assert code == 0
    assert output.startswith("already complete")
    assert len(list((undisturbed.volume / "tiny").glob("2*"))) == 1


def test_a_complete_run_of_another_recipe_is_refused(undisturbed: Command) -> None:
    code, output = undisturbed.run("--set", "training.learning_rate=0.5")
    assert code == 3
    assert "training.learning_rate: 0.01 -> 0.5" in output
    assert "Traceback" not in output


def test_a_resume_with_other_data_or_settings_names_the_difference(
    tiny_model: Path, tmp_path: Path
) -> None:
    first = Command(tmp_path, recipe(tiny_model, tmp_path))
    process = first.start()
    first.wait_for("checkpoints/checkpoint-4/" + SEAL, process)
    process.kill()
    process.communicate()
    rows = tmp_path / "rows.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join(lines[1:]) + "\n")
    code, output = first.run("--set", "lora.r=8", "--set", "training.max_steps=41")
    assert code == 3, output
    assert "lora.r: 4 -> 8" in output
    assert "training.max_steps: 40 -> 41" in output
    assert "data: sha256:" in output


def test_a_checkpoint_with_a_changed_file_counts_as_nothing(tmp_path: Path) -> None:
    for step in (4, 8):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(bytes(step))
        seal(folder)
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-8"
    (tmp_path / "checkpoint-8" / "weights").write_bytes(b"short")
    assert newest_sealed(tmp_path) == tmp_path / "checkpoint-4"
    assert remove_broken(tmp_path) == [tmp_path / "checkpoint-8"]
    (tmp_path / "checkpoint-4" / "weights").unlink()
    assert newest_sealed(tmp_path) is None
