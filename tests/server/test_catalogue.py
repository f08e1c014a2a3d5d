"""What a server makes of the adapter volume."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.errors import ModelNotFoundError
from server.model.catalogue import VolumeCatalogue
from server.model.digest import weights_digest
from server.model.loader import BaseModel, load_base
from server.types import Message
from tests.models import write_manifest, write_peft_adapter

OLD, NEW = "20261123-080000-aaaaaa", "20261123-090000-bbbbbb"


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseModel:
    return load_base(str(tiny_model))


@pytest.fixture(scope="module")
def digest(base: BaseModel) -> str:
    return weights_digest(base.checkpoint)


@pytest.fixture(scope="session")
def peft_folder(tiny_model: Path, once: Callable[..., Path]) -> Path:
    return once("catalogue-adapter", lambda folder: write_peft_adapter(tiny_model, folder))


class Volume:
    """A volume and the server's view of it."""

    def __init__(self, root: Path, base: BaseModel, digest: str, peft_folder: Path) -> None:
        self.root, self.digest, self.peft_folder = root, digest, peft_folder
        self.catalogue = VolumeCatalogue(
            base, root, weights_digest=digest, max_context=512, created=1
        )

    def publish(self, version: str, name: str = "talk", *, latest: bool = True) -> Path:
        folder = self.root / name / version
        shutil.copytree(self.peft_folder, folder, ignore=shutil.ignore_patterns(".done"))
        write_manifest(folder, weights_digest=self.digest)
        if latest:
            self.point(version, name)
        return folder

    def point(self, version: str, name: str = "talk") -> None:
        link = self.root / name / ".link"
        link.symlink_to(version)
        link.rename(self.root / name / "latest")

    def ids(self) -> list[str]:
        self.catalogue.refresh()
        return [info.id for info in self.catalogue.list()]


@pytest.fixture
def volume(tmp_path: Path, base: BaseModel, digest: str, peft_folder: Path) -> Volume:
    return Volume(tmp_path / "adapters", base, digest, peft_folder)


def test_an_absent_or_empty_volume_serves_the_base(volume: Volume) -> None:
    assert volume.ids() == ["base"]
    volume.root.mkdir()
    assert volume.ids() == ["base"]


def test_versions_appear_and_latest_moves_without_a_restart(volume: Volume) -> None:
    volume.publish(OLD)
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]
    first = volume.catalogue.find("talk")
    assert first.id == f"talk@{OLD}"
    volume.publish(NEW)
    assert volume.ids() == ["base", "talk", f"talk@{OLD}", f"talk@{NEW}"]
    assert volume.catalogue.find("talk").id == f"talk@{NEW}"
    assert volume.catalogue.find(f"talk@{OLD}") is first, "a version is loaded once"
    volume.point(OLD)  # a roll-back
    volume.catalogue.refresh()
    assert volume.catalogue.find("talk") is first


def test_a_removed_version_is_no_longer_served(volume: Volume) -> None:
    volume.publish(OLD)
    shutil.rmtree(volume.publish(NEW))
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]
    with pytest.raises(ModelNotFoundError, match="talk"):
        volume.catalogue.find(f"talk@{NEW}")


def test_versions_share_a_tokenizer_and_leave_nothing_behind(volume: Volume) -> None:
    volume.publish(OLD)
    volume.publish(NEW)
    volume.catalogue.refresh()
    models = [volume.catalogue.find(f"talk@{v}") for v in (OLD, NEW)]
    assert models[0].tokenizer._tokenizer is models[1].tokenizer._tokenizer
    lease = volume.catalogue.acquire(models[0]).result(10)
    weights, tokenizer = weakref.ref(lease.adapter), weakref.ref(models[0].tokenizer._tokenizer)
    lease.release()
    models.clear()
    del lease
    shutil.rmtree(volume.root / "talk")
    volume.catalogue.refresh()
    gc.collect()
    assert (weights(), tokenizer()) == (None, None)


def test_the_adapter_brings_its_own_template_and_stop_tokens(volume: Volume) -> None:
    folder = volume.root / "talk" / OLD
    shutil.copytree(volume.peft_folder, folder)
    (folder / "chat_template.jinja").write_text("Q {{ messages[0].content }} A")
    write_manifest(folder, weights_digest=volume.digest, stop_token_ids=[7])
    volume.catalogue.refresh()
    model, base = volume.catalogue.find("talk"), volume.catalogue.find("base")
    question = [Message("user", "x")]
    assert model.encode_chat(question) != base.encode_chat(question)
    assert len(model.encode_chat(question)) == len("Q x A")
    assert (model.stop_token_ids, base.stop_token_ids) == ({7}, {2})


def tamper(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def escape(folder: Path) -> None:
    outside = folder.parent.parent.parent / "outside.safetensors"
    (folder / "adapter_model.safetensors").rename(outside)
    (folder / "adapter_model.safetensors").symlink_to(outside)


def foreign_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "NoSuch"}}')
    digest = json.loads((folder / "manifest.json").read_text())["base"]["weights_digest"]
    write_manifest(folder, weights_digest=digest)


def tokenizer_beyond_the_base(folder: Path) -> None:
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"]["vocab"]["far"] = 9999  # few tokens, one with a large number
    path.write_text(json.dumps(fields))
    digest = json.loads((folder / "manifest.json").read_text())["base"]["weights_digest"]
    write_manifest(folder, weights_digest=digest)


def another_beginning(folder: Path) -> None:
    """PiSSA takes its first A and B out of the base's weights; what is left of them is another base."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    digest = json.loads((folder / "manifest.json").read_text())["base"]["weights_digest"]
    write_manifest(folder, weights_digest=digest)


def change(**fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


BASE = {"id": "tiny-model", "revision": None}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (tamper, "digest differs"),
        (escape, "leads out"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (foreign_tokenizer, "tokenizer"),
        (tokenizer_beyond_the_base, "no embedding"),
        (another_beginning, "init_lora_weights='pissa'"),
        (change(format="lorachat-adapter/2"), "format"),
        (change(name="other"), "renamed"),
        (change(files={}), "does not list"),
        (change(stop_token_ids=[]), "stop tokens"),
        (change(base={**BASE, "weights_digest": "sha256:" + "0" * 64}), "another base"),
        (change(base={"id": "x", "revision": None, "weights_digest": None}), "trained for x"),
    ],
)
def test_a_bad_version_is_refused_with_the_reason_and_the_others_go_on(
    volume: Volume, damage: Callable[[Path], object], reason: str
) -> None:
    volume.publish(OLD)
    volume.publish(NEW)
    damage(volume.root / "talk" / NEW)
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]
    assert volume.catalogue.find("talk").id == f"talk@{OLD}", "the newest good version stands in"
    assert reason in volume.catalogue.refused[f"talk@{NEW}"]


def test_a_base_without_a_digest_is_matched_by_its_id(volume: Volume) -> None:
    folder = volume.publish(OLD)
    change(base={**BASE, "weights_digest": None})(folder)
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]


def test_names_that_are_not_versions_are_left_alone(volume: Volume) -> None:
    good = volume.publish(OLD)
    for name in (".tmp-123", "base", "bad name", ".hidden"):
        shutil.copytree(good, volume.root / name / OLD)
    shutil.copytree(good, volume.root / "talk" / ".tmp-9")
    (volume.root / "README").write_text("x")
    os.symlink(good, volume.root / "talk" / "20261123-100000-cccccc")
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]
    assert "not a link" in volume.catalogue.refused["talk@20261123-100000-cccccc"]


def test_a_copy_that_was_met_half_done_is_served_once_it_is_whole(volume: Volume) -> None:
    folder = volume.publish(OLD)
    weights = folder / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:100])
    assert volume.ids() == ["base"]
    with weights.open("ab") as file:  # as a plain copy goes on: the folder itself does not change
        file.write(data[100:])
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]


def test_a_volume_that_is_away_for_a_moment_takes_no_model_with_it(
    volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.publish(OLD)
    served = volume.ids()

    def fail(_: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", fail)
        assert volume.ids() == served
    shutil.rmtree(volume.root)
    assert volume.ids() == ["base"], "gone is not away"


def test_a_link_that_leads_nowhere_is_no_reason_to_stop_looking(volume: Volume) -> None:
    volume.publish(OLD)
    os.symlink("x" * 300, volume.root / "unnameable")
    os.symlink("loop", volume.root / "loop")
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]


def test_an_adapter_called_like_the_bases_folder_is_still_the_adapter(volume: Volume) -> None:
    volume.publish(OLD, name="tiny-model")
    assert volume.catalogue.find("tiny-model").adapter is None, "the base's id"
    volume.catalogue.refresh()
    assert volume.catalogue.find("tiny-model").id == f"tiny-model@{OLD}"


def test_templates_get_the_special_tokens_of_their_own_version(volume: Volume) -> None:
    volume.publish(OLD)
    folder = volume.root / "talk" / NEW
    shutil.copytree(volume.peft_folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|endoftext|>"}))
    for version in (OLD, NEW):
        (folder.parent / version / "chat_template.jinja").write_text("{{ bos_token }}")
        write_manifest(folder.parent / version, weights_digest=volume.digest)
    volume.catalogue.refresh()
    question = [Message("user", "x")]
    prompts = [volume.catalogue.find(f"talk@{v}").encode_chat(question) for v in (OLD, NEW)]
    assert prompts == [[1], [0]]


@pytest.mark.parametrize("name", ["", "..", "talk@", "talk@../x", "../adapters/talk", "Base"])
def test_a_name_is_looked_up_and_never_used_as_a_path(volume: Volume, name: str) -> None:
    volume.publish(OLD)
    volume.catalogue.refresh()
    with pytest.raises(ModelNotFoundError, match="This server has: base, talk"):
        volume.catalogue.find(name)
