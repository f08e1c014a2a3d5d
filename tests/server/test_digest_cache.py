"""The digest is computed once for the same files, and again for others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from server.model import digest_cache
from server.model.checkpoint import open_checkpoint
from server.model.digest import weights_digest
from server.model.digest_cache import cache_folder, cached_weights_digest
from tests.families import write_model


class Base:
    """A model folder, a cache, and a count of the times that the model was hashed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self.hashed = folder / "model", folder / "cache", 0
        write_model(self.folder, "llama-2")
        self.age()

        def count(*arguments: object) -> str:
            self.hashed += 1
            return weights_digest(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(digest_cache, "weights_digest", count)

    def age(self, seconds: float = 100) -> None:
        """As if the files had been written some time ago."""
        for path in self.folder.iterdir():
            os.utime(path, (time.time(), time.time() - seconds))

    def digest(self) -> str:
        checkpoint = open_checkpoint(self.folder)
        found = cached_weights_digest(checkpoint, 2, self.cache)
        assert found == weights_digest(checkpoint)
        return found

    @property
    def entry(self) -> Path:
        (path,) = (self.cache / "digests").glob("*.json")
        return path


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    return Base(tmp_path, monkeypatch)


def test_the_second_start_does_not_hash(base: Base) -> None:
    assert base.digest() == base.digest()
    assert base.hashed == 1


def test_other_values_are_hashed_again(base: Base) -> None:
    before = base.digest()
    path = base.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    base.age(50)
    assert base.digest() != before
    assert base.hashed == 2


def test_a_file_that_was_just_written_is_not_remembered(base: Base) -> None:
    base.age(0)
    assert base.digest() == base.digest()
    assert base.hashed == 2


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[" * 100000),
        lambda path: path.write_text('["sha256"]'),
        edit(digest="sha256:xyz"),
        edit(digest=None),
        edit(format="lorachat-digest/2"),
        edit(files=[]),
    ],
)
def test_a_wrong_entry_is_ignored_and_replaced(base: Base, damage: Callable[[Path], None]) -> None:
    base.digest()
    damage(base.entry)
    base.digest()
    base.digest()
    assert base.hashed == 2


def test_a_cache_that_cannot_be_written_costs_only_time(base: Base) -> None:
    base.cache.write_text("a file where the folder should be")
    assert base.digest() == base.digest()
    assert base.hashed == 2


def test_a_user_without_a_home_starts_without_a_cache(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    base.cache = cache_folder({})
    assert base.digest() == base.digest()
    assert base.hashed == 2


def test_where_it_is() -> None:
    assert cache_folder({"LORACHAT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"LORACHAT_CACHE": "", "XDG_CACHE_HOME": "/b"}) == Path("/b/lorachat")
    assert cache_folder({}) == Path.home() / ".cache" / "lorachat"
