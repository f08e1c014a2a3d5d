"""The command line: light, with the promised exit codes, and without tracebacks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.__main__ import main
from trainer.recipe_file import dump_recipe

ROOT = Path(__file__).resolve().parents[2]


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, trainer.__main__ as m\n"
        "try: m.main(sys.argv[1:])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["train", "--help"], ["prepare", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "usage: python -m trainer" in done.stdout


def test_recipes_lists_them_and_where_they_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "CUDA GPU" in lines["llama-3.2-3b"]
    assert "any machine" in lines["smollm2-cpu-demo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "nothing"], "There is no recipe file 'nothing'"),
        (
            ["--recipe", "smollm2-cpu-demo", "--set", "training.max_step=1"],
            "Did you mean training.max_steps?",
        ),
        (["--recipe", "smollm2-cpu-demo", "--name", "base"], "cannot be an adapter's name"),
    ],
)
def test_configuration_errors_exit_with_3(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--output", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("command", ["plan", "prepare", "train", "evaluate"])
def test_only_a_stopped_training_goes_on(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"trainer.__main__._{command}", stop)
    needed = ["--adapter", "x"] if command == "evaluate" else ["--recipe", "x"]
    needed += ["--output", "x"] if command == "train" else []
    assert main([command, *needed]) == 130
    told = capsys.readouterr().err
    assert told.startswith("trainer: stopped")
    assert ("the same command goes on" in told) == (command == "train")


def test_the_volume_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.arguments import parser

    arguments = ["train", "--recipe", "x", "--output", "out"]
    monkeypatch.setenv("LORACHAT_ADAPTERS", "/volume")
    assert parser().parse_args(arguments).adapters == Path("/volume")
    monkeypatch.delenv("LORACHAT_ADAPTERS")
    assert parser().parse_args(arguments).adapters == Path("adapters")


def test_train_and_prepare_as_a_user_runs_them(tiny_model: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(dump_recipe(tiny_recipe(tiny_model, tmp_path)))
    environment = {**os.environ, "LORACHAT_ADAPTERS": str(tmp_path / "adapters")}
    shared = ["--recipe", str(recipe)]
    for setting in ("training.max_steps=2", "training.warmup_steps=0", "evaluation.eval_steps=1"):
        shared += ["--set", setting]
    prepared, trained, missing = (
        subprocess.run(
            [sys.executable, "-m", "trainer", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for arguments in (
            ["prepare", *shared, "--show", "5"],
            ["train", *shared, "--output", str(tmp_path / "tiny")],
            ["prepare", *shared, "--set", "data.sources.0.location=none.jsonl"],
        )
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "near-duplicates" in prepared.stdout
    assert prepared.stdout.count("⟦") >= 5
    assert "Sample 5" in prepared.stdout
    assert "Sample 6" not in prepared.stdout
    assert trained.returncode == 0, trained.stderr
    assert "held-out loss, all:" in trained.stdout
    assert "Warning" not in trained.stderr, trained.stderr
    assert "Training 2/2" in trained.stderr  # no terminal: plain lines
    assert (tmp_path / "adapters" / "tiny" / "latest" / "manifest.json").is_file()
    assert missing.returncode == 3
    assert missing.stderr.count("\n") == 1
    assert "there is no file none.jsonl" in missing.stderr
