from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from server.settings import Settings
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LORACHAT_{name.upper()}", raising=False)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_readme_and_in_the_example_file(name: str) -> None:
    variable = f"LORACHAT_{name.upper()}"
    assert f"`{variable}`" in (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"^#?{variable}=", (ROOT / ".env.example").read_text("utf-8"), re.MULTILINE)


def test_help_lists_every_setting_and_imports_no_torch() -> None:
    code = (
        "import sys, runpy\n"
        "sys.argv = ['server', '--help']\n"
        "try: runpy.run_module('server', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in shown.stdout


def test_variables_and_keys_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORACHAT_MODEL", "some/model")
    monkeypatch.setenv("LORACHAT_API_KEYS", "first-key, other-key,")
    monkeypatch.setenv("LORACHAT_THREADS", "")  # compose hands unset variables on as empty
    settings = Settings()  # type: ignore[call-arg]
    assert settings.model == "some/model"
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key", "other-key"]
    assert settings.threads is None
    assert "first-key" not in repr(settings)


@pytest.mark.parametrize(
    "wrong", [{"port": 70000}, {"threads": 0}, {"max_running": 0}, {"log_level": "loud"}]
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings(model="m", **wrong)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--model", "LORACHAT_MODEL", "make model"]),
        (["--model", "m", "--port", "x"], ["--port", "LORACHAT_PORT", "integer"]),
        (["--model", "m", "--threads", "0"], ["--threads", "greater than or equal to 1"]),
    ],
)
def test_a_wrong_start_is_one_line_that_says_what_to_do(
    arguments: list[str], words: list[str]
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert all(word in result.stderr for word in words)


def test_a_model_that_is_not_there_ends_the_server_with_one_sentence() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "server", "--model", "/no/such/model", "--port", "0"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 1
    assert "There is no folder at /no/such/model" in result.stderr
    assert "Traceback" not in result.stderr
