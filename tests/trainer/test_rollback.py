"""`python -m trainer rollback`: latest goes back in one step, to whole versions only."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models import write_manifest
from trainer.__main__ import main

FIRST, SECOND, THIRD = (f"20261123-0{hour}0000-aaaaaa" for hour in (7, 8, 9))


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    for version in (FIRST, SECOND, THIRD):
        folder = tmp_path / "talk" / version
        folder.mkdir(parents=True)
        (folder / "chat_template.jinja").write_text("x")
        (folder / "adapter_model.safetensors").write_text(version)
        write_manifest(folder, weights_digest=None)
    (tmp_path / "talk" / "latest").symlink_to(THIRD)
    (tmp_path / "talk" / ".tmp-1").mkdir()
    return tmp_path


def latest(volume: Path) -> str:
    return os.readlink(volume / "talk" / "latest")


def run(volume: Path, *arguments: str) -> int:
    return main(["rollback", *arguments, "--adapters", str(volume)])


def test_it_goes_to_the_version_before_and_says_so(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(volume, "talk") == 0
    assert latest(volume) == SECOND
    said = capsys.readouterr().out
    assert f"was {THIRD} and is {SECOND}" in said
    assert run(volume, "talk") == 0
    assert latest(volume) == FIRST
    assert {p.name for p in (volume / "talk").iterdir()} >= {FIRST, SECOND, THIRD}


def test_it_goes_to_the_version_named_forward_too(volume: Path) -> None:
    assert run(volume, "talk", FIRST) == 0
    assert latest(volume) == FIRST
    assert run(volume, "talk", THIRD) == 0
    assert latest(volume) == THIRD


def test_readers_never_miss_the_link(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new link is renamed over the old one: if that fails, the old one is still there and nothing else is."""

    def fail(*_: object) -> None:
        assert latest(volume) == THIRD
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        assert run(volume, "talk") == 1
    assert latest(volume) == THIRD
    assert sorted(p.name for p in (volume / "talk").iterdir()) == [
        ".tmp-1",
        FIRST,
        SECOND,
        THIRD,
        "latest",
    ]


def change(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json cannot be read"),
        (change("manifest.json", "{"), "manifest.json cannot be read"),
        (
            change("manifest.json", '{"name": "a", "version": "b", "files": {}}'),
            "another version's",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").unlink(),
            "chat_template.jinja is missing",
        ),
        (change("adapter_model.safetensors", "half"), "not what was published"),
    ],
)
def test_a_version_that_is_not_whole_is_refused(
    volume: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    damage(volume / "talk" / SECOND)
    assert run(volume, "talk") == 3
    assert reason in capsys.readouterr().err
    assert latest(volume) == THIRD


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nobody",), "no published version of 'nobody'"),
        (("../talk",), "cannot be an adapter's name"),
        (("talk", "20200101-000000-aaaaaa"), f"It has: {FIRST}, {SECOND}, {THIRD}"),
        (("talk", ".tmp-1"), "has no version '.tmp-1'"),
        (("talk", "../talk"), "has no version"),
        (("talk", THIRD), "already"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(
    volume: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    assert run(volume, *arguments) == 3
    assert reason in capsys.readouterr().err
    assert latest(volume) == THIRD


def test_there_may_be_nothing_to_go_back_to(
    volume: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(volume, "talk", FIRST) == 0
    assert run(volume, "talk") == 3
    assert f"no version before {FIRST}" in capsys.readouterr().err
    (volume / "talk" / "latest").unlink()
    assert run(volume, "talk") == 3
    assert "name a version" in capsys.readouterr().err
    (volume / "talk" / "latest").mkdir()
    assert run(volume, "talk") == 3
    assert "not a symbolic link" in capsys.readouterr().err
