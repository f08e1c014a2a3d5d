"""What a server makes of the adapter volume."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from server.errors import ConflictError, ModelNotFoundError, UnavailableError
from server.model.adapter import read_adapter
from server.model.adapter_desk import AdapterDesk
from server.model.adapter_memory import AdapterMemory
from server.model.catalogue import VolumeCatalogue
from server.model.checked_cache import CheckedCache
from server.model.digest import weights_digest
from server.model.loader import BaseModel, load_base
from server.model.lora import AdapterWeights
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


FAR_PROBE = {"format": "lorachat-probe/1", "token_ids": [10**6, 1], "logprobs": [-1.0]}


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
        # The reason that helps is the base, and not that the probe has words which this base does not know.
        (
            change(base={"id": "x", "revision": None, "weights_digest": None}, probe=FAR_PROBE),
            "trained for x",
        ),
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


def become_pipe(path: Path) -> None:
    """Whoever opened it would wait for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["manifest.json", "adapter_config.json", "tokenizer.json"])
def test_a_pipe_in_a_version_is_refused_and_the_others_are_served(
    volume: Volume, name: str
) -> None:
    volume.publish(OLD)
    become_pipe(volume.publish(NEW) / name)
    assert volume.ids() == ["base", "talk", f"talk@{OLD}"]
    assert volume.catalogue.snapshot.refused[f"talk@{NEW}"].kind == "path"


def restart(volume: Volume, base: BaseModel, **options: Any) -> VolumeCatalogue:
    """Another server over the same volume."""
    volume.catalogue = VolumeCatalogue(
        base, volume.root, weights_digest=volume.digest, max_context=512, created=1, **options
    )
    return volume.catalogue


def plain(volume: Volume, name: str = "plain", *, tokenizer: bool = True) -> Path:
    """What PEFT saves, in the adapter's own folder and without a manifest."""
    folder = volume.root / name
    shutil.copytree(volume.peft_folder, folder, ignore=shutil.ignore_patterns(".done"))
    if not tokenizer:
        for path in folder.iterdir():
            if not path.name.startswith("adapter_"):
                path.unlink()
    return folder


def test_an_adapter_without_a_manifest_is_served_only_if_the_operator_says_so(
    volume: Volume, base: BaseModel
) -> None:
    plain(volume)
    (volume.publish(OLD) / "manifest.json").unlink()
    assert volume.ids() == ["base"]
    reasons = volume.catalogue.refused
    assert reasons.keys() == {"plain", f"talk@{OLD}"}
    assert all("--allow-unsigned-adapters" in reason for reason in reasons.values())
    restart(volume, base, allow_unsigned=True)
    ids = volume.ids()
    assert ids[:3] == ["base", "plain", "talk"]
    assert f"talk@{OLD}" in ids
    model = volume.catalogue.find("plain")
    assert model.id.startswith("plain@")
    assert model.version is not None
    assert not model.version.signed


def test_a_plain_folder_is_versioned_by_its_contents(volume: Volume, base: BaseModel) -> None:
    folder = plain(volume)
    restart(volume, base, allow_unsigned=True)
    volume.catalogue.refresh()
    first = volume.catalogue.find("plain")
    lease = volume.catalogue.acquire(first).result(10)
    volume.catalogue.refresh()
    assert volume.catalogue.find("plain") is first
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    volume.catalogue.refresh()
    second = volume.catalogue.find("plain")
    assert second.id != first.id
    assert second.encode_chat([Message("user", "x")]) != first.encode_chat([Message("user", "x")])
    assert volume.catalogue.memory.draining() == {first.id: 1}, "its answers finish"
    lease.release()
    (folder / "adapter_config.json").write_text("{")
    assert volume.ids() == ["base"]
    assert "not JSON" in volume.catalogue.refused["plain"]


def test_a_plain_folder_takes_the_bases_words_where_it_brings_none(
    volume: Volume, base: BaseModel
) -> None:
    plain(volume, tokenizer=False)
    folder = plain(volume, "own")
    (folder / "chat_template.jinja").write_text("Q {{ messages[0].content }}")
    restart(volume, base, allow_unsigned=True)
    volume.catalogue.refresh()
    question = [Message("user", "x")]
    bare, own = volume.catalogue.find("plain"), volume.catalogue.find("own")
    assert bare.encode_chat(question) == base.tokenizer.encode_chat(question)
    assert bare.stop_token_ids == base.stop_token_ids
    assert len(own.encode_chat(question)) == len("Q x")
    assert own.stop_token_ids == {2}
    (folder / "tokenizer.json").unlink()
    volume.catalogue.refresh()
    assert len(volume.catalogue.find("own").encode_chat(question)) == len("Q x"), "its template"


def test_what_training_left_in_a_plain_folder_is_no_version(
    volume: Volume, base: BaseModel
) -> None:
    folder = plain(volume)
    shutil.copytree(volume.peft_folder, folder / "checkpoint-10")
    restart(volume, base, allow_unsigned=True)
    assert len(volume.ids()) == 3
    assert volume.catalogue.refused == {}


def unbind(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj"]}))


def poison(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)


def only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (unbind, "tensors"),
        (poison, "tensors"),
        (truncate, "tensors"),
        (only_pickle, "tensors"),
        (escape, "path"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
        (lambda folder: (folder / "chat_template.jinja").write_bytes(b"\xff"), "tokenizer"),
        (lambda folder: os.symlink("/etc", folder / "special"), "path"),
        (lambda folder: become_pipe(folder / "adapter_config.json"), "path"),
        (lambda folder: become_pipe(folder / "adapter_model.safetensors"), "path"),
        (lambda folder: become_pipe(folder / "special_tokens_map.json"), "path"),
    ],
)
def test_an_unsigned_adapter_has_the_same_checks(
    volume: Volume, base: BaseModel, damage: Callable[[Path], object], kind: str
) -> None:
    damage(plain(volume))
    restart(volume, base, allow_unsigned=True)
    assert volume.ids() == ["base"]
    assert volume.catalogue.snapshot.refused["plain"].kind == kind


def test_a_folder_that_leads_out_of_the_root_is_refused(volume: Volume, base: BaseModel) -> None:
    outside = volume.root.parent / "outside"
    volume.publish(OLD).parent.rename(outside)
    os.symlink(outside, volume.root / "talk")
    shutil.copytree(outside / OLD, volume.root.parent / "plain-outside")
    os.symlink(volume.root.parent / "plain-outside", volume.root / "bare")
    restart(volume, base, allow_unsigned=True)
    assert volume.ids() == ["base"]
    refused = volume.catalogue.snapshot.refused
    assert {refusal.kind for refusal in refused.values()} == {"path"}
    assert refused.keys() == {f"talk@{OLD}", "bare"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("manifest.json", "has over"), ("chat_template.jinja", "has over"), ("adapter_config.json", "has over")],
)  # fmt: skip
def test_a_file_too_large_for_what_it_is_is_not_read(
    volume: Volume, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    folder = volume.publish(OLD)
    if name != "manifest.json":
        (folder / name).write_text((folder / name).read_text() + " " * 20_000)
        write_manifest(folder, weights_digest=volume.digest)
    else:
        change(recipe={"x": "y" * 20_000})(folder)
    monkeypatch.setattr("server.model.manifest.MAX_SMALL_BYTES", 10_000)
    assert volume.ids() == ["base"]
    assert reason in volume.catalogue.refused[f"talk@{OLD}"]


def test_an_adapter_larger_than_the_memory_is_refused_before_it_is_read(
    volume: Volume, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume.publish(OLD)
    restart(volume, base, memory=AdapterMemory(1000))
    monkeypatch.setattr("server.model.admission.read_adapter", None)
    assert volume.ids() == ["base"]
    refusal = volume.catalogue.snapshot.refused[f"talk@{OLD}"]
    assert refusal.kind == "size"
    assert "--adapter-memory-gib" in refusal.reason


def test_a_refusal_is_logged_once_and_keeps_its_time(
    volume: Volume, caplog: pytest.LogCaptureFixture
) -> None:
    tamper(volume.publish(OLD))
    before = time.time()
    for _ in range(3):
        assert volume.ids() == ["base"]
    assert caplog.text.count("is refused") == 1
    refusal = volume.catalogue.snapshot.refused[f"talk@{OLD}"]
    assert before <= refusal.since <= time.time()
    assert volume.catalogue.refusals == {"digest": 1}
    shutil.rmtree(volume.root / "talk")
    volume.catalogue.refresh()
    assert volume.catalogue.refused == {}
    assert volume.catalogue.refusals == {"digest": 1}, "what was counted stays counted"


def test_a_restart_reads_no_weights_of_what_it_knows(
    volume: Volume, base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in (OLD, NEW):
        folder = volume.publish(version)
        for path in folder.iterdir():
            os.utime(path, (1e9, 1e9))  # settled long ago
    cache = CheckedCache(tmp_path / "cache", "base", "kernel")
    restart(volume, base, cache=cache)
    served = volume.ids()
    listed = volume.catalogue.list()
    read = []

    def noted(folder: Path, *rest: Any) -> AdapterWeights:
        read.append(folder.name)
        return read_adapter(folder, *rest)

    monkeypatch.setattr("server.model.admission.read_adapter", noted)
    again = restart(volume, base, cache=cache)
    assert volume.ids() == served
    assert again.list() == listed
    assert read == []
    again.acquire(again.find("talk")).result(10).release()
    assert read == [NEW]
    restart(volume, base, cache=CheckedCache(tmp_path / "cache", "another base", "kernel"))
    assert volume.ids() == served
    assert read == [NEW, OLD, NEW], "for another base it is checked again"
    os.utime(volume.root / "talk" / OLD / "tokenizer.json")
    restart(volume, base, cache=cache)
    volume.ids()
    assert read == [NEW, OLD, NEW, OLD], "a file that changed is not trusted"


def test_weights_that_change_after_their_check_are_never_used(
    volume: Volume, base: BaseModel, tmp_path: Path
) -> None:
    """The bytes that are used are the bytes that were hashed, each time an adapter comes into memory."""
    folder = volume.publish(OLD)
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    cache = CheckedCache(tmp_path / "cache", "x")
    restart(volume, base, cache=cache)
    volume.ids()
    tamper(folder)
    os.utime(folder / "adapter_model.safetensors", (1e9, 1e9))  # nothing shows it from outside
    restart(volume, base, cache=cache)
    assert f"talk@{OLD}" in volume.ids()
    with pytest.raises(UnavailableError, match="digest differs"):
        volume.catalogue.acquire(volume.catalogue.find("talk")).result(10)
    assert volume.ids() == ["base"], "and from then on it is refused"
    assert volume.catalogue.snapshot.refused[f"talk@{OLD}"].kind == "digest"
    restart(volume, base, cache=cache)
    assert volume.ids() == ["base"], "after a restart too"


def test_a_version_that_cannot_be_checked_now_is_looked_at_again(
    volume: Volume, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All adapter memory is in use by running answers: that says nothing against a new version."""
    monkeypatch.setattr("server.model.admission.WAIT_SECONDS", 0.05)
    volume.publish(OLD)
    volume.catalogue.refresh()
    size = volume.catalogue.find("talk").adapter.num_bytes  # type: ignore[union-attr]
    restart(volume, base, memory=AdapterMemory(size))
    volume.catalogue.refresh()
    lease = volume.catalogue.acquire(volume.catalogue.find("talk")).result(10)
    volume.publish(NEW)
    assert f"talk@{NEW}" not in volume.ids()
    assert volume.catalogue.refused == {}
    lease.release()
    assert f"talk@{NEW}" in volume.ids()


def test_a_link_that_is_no_folder_name_is_no_reason_to_fall(volume: Volume) -> None:
    volume.publish(OLD)
    volume.point("../../etc")
    assert volume.catalogue.refresh() is None
    assert volume.catalogue.find("talk").id == f"talk@{OLD}"


class TestDesk:
    @pytest.fixture
    def desk(self, volume: Volume) -> AdapterDesk:
        desk = AdapterDesk(volume.catalogue)
        volume.publish(OLD)
        volume.publish(NEW)
        desk.refresh()
        return desk

    def states(self, desk: AdapterDesk) -> dict[str, str]:
        return {row.version: row.state for row in desk.describe()}

    def test_it_tells_of_every_version(self, volume: Volume, desk: AdapterDesk) -> None:
        tamper(volume.publish("20261123-100000-cccccc", latest=False))
        desk.refresh()
        old, new, bad = desk.describe()
        assert (old.id, old.name, old.version, old.latest) == (f"talk@{OLD}", "talk", OLD, False)
        assert (new.state, new.latest, new.rank, new.signed) == ("loaded", True, 4, True)
        assert new.base == "tiny-model"
        assert new.digest == volume.catalogue.find("talk").adapter.digest  # type: ignore[union-attr]
        assert new.last_used is not None
        assert (bad.state, bad.digest) == ("refused", None)
        assert bad.reason is not None
        assert "digest differs" in bad.reason

    def test_unloading_drains_and_holds_until_a_reload(
        self, volume: Volume, desk: AdapterDesk
    ) -> None:
        lease = volume.catalogue.acquire(volume.catalogue.find("talk")).result(10)
        rows = desk.unload("talk")
        assert {row.version: row.state for row in rows} == {OLD: "unloaded", NEW: "draining"}
        assert lease.adapter.key == f"talk@{NEW}", "who has it, has it"
        for _ in range(3):
            desk.refresh()
        with pytest.raises(ModelNotFoundError):
            volume.catalogue.find("talk")
        lease.release()
        assert self.states(desk) == {OLD: "unloaded", NEW: "unloaded"}
        desk.reload("talk")
        assert volume.catalogue.find("talk").id == f"talk@{NEW}"

    def test_a_new_version_of_an_unloaded_name_is_served(
        self, volume: Volume, desk: AdapterDesk
    ) -> None:
        desk.unload("talk")
        volume.publish("20261123-100000-cccccc")
        desk.refresh()
        assert volume.catalogue.find("talk").id == "talk@20261123-100000-cccccc"

    def test_one_version_can_be_unloaded(self, volume: Volume, desk: AdapterDesk) -> None:
        desk.unload(f"talk@{NEW}")
        assert volume.catalogue.find("talk").id == f"talk@{OLD}"
        desk.reload(f"talk@{NEW}")
        assert volume.catalogue.find("talk").id == f"talk@{NEW}"

    def test_an_unloaded_version_that_is_removed_is_forgotten(
        self, volume: Volume, desk: AdapterDesk
    ) -> None:
        desk.unload("talk")
        shutil.rmtree(volume.root / "talk" / OLD)
        desk.refresh()
        assert self.states(desk) == {NEW: "unloaded"}

    def test_removing_a_version_drains_it(self, volume: Volume, desk: AdapterDesk) -> None:
        lease = volume.catalogue.acquire(volume.catalogue.find("talk")).result(10)
        shutil.rmtree(volume.root / "talk" / NEW)
        desk.refresh()
        assert self.states(desk) == {OLD: "loaded", NEW: "draining"}
        assert desk.describe()[1].requests_running == 1
        lease.release()
        assert self.states(desk) == {OLD: "loaded"}

    def test_a_reload_looks_again_at_what_was_served_and_at_what_was_refused(
        self, volume: Volume, desk: AdapterDesk
    ) -> None:
        weights = volume.root / "talk" / NEW / "adapter_model.safetensors"
        right, state = weights.read_bytes(), weights.stat()
        tamper(weights.parent)
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
        desk.refresh()
        assert self.states(desk)[NEW] == "loaded", (
            "a version is immutable: it is not read at every look"
        )
        desk.reload("talk")
        assert self.states(desk) == {OLD: "loaded", NEW: "refused"}
        weights.write_bytes(right)
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
        desk.refresh()
        assert self.states(desk)[NEW] == "refused", "nothing shows that it changed"
        desk.reload("talk")
        assert self.states(desk) == {OLD: "loaded", NEW: "loaded"}

    def test_a_reload_finds_what_is_new(self, volume: Volume, desk: AdapterDesk) -> None:
        volume.publish(OLD, name="fresh")
        (row,) = desk.reload("fresh")
        assert row.state == "loaded"

    @pytest.mark.parametrize(
        "name",
        ["nobody", "base", "", "talk@", "../talk", f"talk/{OLD}", "talk@../x", "talk@latest"],
    )
    def test_names_are_looked_up(self, desk: AdapterDesk, name: str) -> None:
        for act in (desk.reload, desk.unload, desk.pin, desk.unpin):
            if (name, act) == ("talk@latest", desk.pin):
                continue
            with pytest.raises(ModelNotFoundError):
                act(name)

    def test_a_pin_holds_and_follows_its_name(self, volume: Volume, base: BaseModel) -> None:
        volume.publish(OLD)
        volume.catalogue.refresh()
        size = volume.catalogue.find("talk").adapter.num_bytes  # type: ignore[union-attr]
        catalogue = restart(volume, base, memory=AdapterMemory(2 * size))
        desk = AdapterDesk(catalogue)
        volume.publish(OLD, name="other")
        volume.publish(OLD, name="third")
        desk.refresh()
        desk.pin("talk")
        for name in ("other", "third", "other"):
            catalogue.acquire(catalogue.find(name)).result(10).release()
        assert {row.name: row.state for row in desk.describe()} == {
            "talk": "pinned", "other": "loaded", "third": "available"}  # fmt: skip
        desk.pin("other")
        with pytest.raises(ConflictError, match="unpin one"):
            desk.pin("third")
        desk.unpin("other")
        volume.publish(NEW)
        desk.refresh()
        assert {row.id: row.state for row in desk.describe()}[f"talk@{NEW}"] == "pinned"
        assert not next(row for row in desk.describe() if row.version == OLD).pinned
        desk.unload("talk")
        assert not any(row.pinned for row in desk.describe())

    def test_a_path_counts_only_where_the_name_lies(
        self, volume: Volume, desk: AdapterDesk
    ) -> None:
        root = volume.root
        outside = root.parent / "outside"
        shutil.copytree(root / "talk" / OLD, outside)
        os.symlink(outside, root / "sly")
        right = [("talk", str(root / "talk")), ("talk", "talk"), ("talk", "talk/latest"),
                 ("talk", str(root / "talk" / NEW)), (f"talk@{OLD}", f"talk/{OLD}"),
                 ("talk", str(root / "x" / ".." / "talk"))]  # fmt: skip
        wrong = [("talk", str(outside)), ("talk", f"talk/{OLD}"), ("talk", ""), ("talk", "/"),
                 ("other", "talk"), (f"talk@{OLD}", "talk"), ("../outside", "../outside"),
                 ("outside", "../outside"), ("sly", "sly"), ("sly", str(outside)), ("talk", "talk\0"),
                 ("talk@latest", "talk/latest"), ("base", "base"), ("", "")]  # fmt: skip
        assert [pair for pair in right if not desk.is_at(*pair)] == []
        assert [pair for pair in wrong if desk.is_at(*pair)] == []
