"""The unsloth backend as far as a machine without a GPU can tell: what is imported first, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.backends.unsloth import UnslothBackend
from trainer.errors import ConfigError
from trainer.recipe_file import dump_recipe

ROOT = Path(__file__).resolve().parents[2]

STAND_IN = """
import os, sys
late = {"transformers", "trl", "peft", "datasets"} & set(sys.modules)
assert not late, late
assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"
assert os.environ["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
raise NotImplementedError("Unsloth: no accelerator\\nsecond line")
"""

PROGRAM = """
import sys
from trainer import machine
machine.this_machine = lambda: machine.Machine("cuda", "Tesla T4", (7, 5))
from trainer.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_unsloth_is_imported_before_what_it_patches(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "unsloth.py").write_text(STAND_IN)
    recipe = tiny_recipe(tiny_model, tmp_path, training={"backend": "auto"})
    (tmp_path / "mine.yaml").write_text(dump_recipe(recipe))
    program = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
    # The memory meter asks the GPU that is not here; it comes after the backend is activated.
    arguments = [
        "train",
        "--recipe",
        str(tmp_path / "mine.yaml"),
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program + PROGRAM, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "unsloth cannot be used here: Unsloth: no accelerator" in done.stderr
    assert "Set training.backend=peft" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_has_the_libraries_already_is_told_to_start_anew() -> None:
    import transformers  # noqa: F401

    with pytest.raises(
        ConfigError, match=r"before transformers.* is imported; start a new process"
    ):
        UnslothBackend().activate()
