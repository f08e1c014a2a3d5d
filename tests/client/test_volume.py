"""The adapter volume, votes and metrics: files and text that the client reads and writes."""

import json
import threading

import pytest

from client.metrics import History, parse
from client.types import Message, Sampling
from client.volume import read_versions, report_path
from client.votes import Vote, VoteFile
from tests.client.conftest import METRICS
from tests.client.volume import write_version

NEW, OLD, BROKEN = "20261123-081642-3fa9c1", "20261120-174501-77d0ee", "20261119-000000-000000"


def test_versions_are_read_by_the_contract(tmp_path):
    write_version(tmp_path, "s", OLD)
    write_version(tmp_path, "s", NEW, latest=True, report="<p>", prompts=["Hi", "Ho"])
    (tmp_path / "s" / ".tmp-20261124-000000-000000").mkdir()
    (tmp_path / "s" / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "base").mkdir()
    new, old = read_versions(tmp_path)
    assert (new.id, new.is_latest, new.has_report) == (f"s@{NEW}", True, True)
    assert (new.base, new.trained_on) == ("tiny", "tiny-4bit (nf4)")
    assert (new.base_loss, new.tuned_loss, new.held_out_rows) == (2.5, 2.0, 41)
    assert (new.sources, new.prompts) == (("help-desk", "small-talk"), ("Hi", "Ho"))
    assert (new.rank, new.parameters, new.bytes, new.steps) == (16, 24313856, 97309184, 40)
    assert (old.version, old.is_latest, old.has_report) == (OLD, False, False)
    assert report_path(tmp_path, "s", NEW).read_text() == "<p>"
    assert report_path(tmp_path, "s", OLD) is None
    assert read_versions(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (None, "has no manifest.json"),
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "lorachat-adapter/1"}', "is damaged"),
        ('{"format": "lorachat-adapter/9"}', "lorachat-adapter/9"),
    ],
)
def test_a_version_that_cannot_be_read_is_listed_with_the_reason(tmp_path, manifest, words):
    folder = write_version(tmp_path, "s", BROKEN)
    write_version(tmp_path, "s", NEW)
    (folder / "manifest.json").unlink()
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    good, bad = read_versions(tmp_path)
    assert good.problem is None
    assert words in bad.problem


def test_votes_are_whole_lines_whoever_writes_at_once(tmp_path):
    votes = VoteFile(tmp_path / "new" / "votes.jsonl")
    vote = Vote([Message("user", "Hé")], ("a", "b"), ("x\ny", "z"), "left", Sampling(seed=1))
    threads = [threading.Thread(target=votes.add, args=[vote]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = [json.loads(line) for line in votes.path.read_text("utf-8").splitlines()]
    assert len(rows) == 8
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "x\ny"}]
    assert rows[0]["rejected"] == [{"role": "assistant", "content": "z"}]
    assert (rows[0]["left"]["model"], rows[0]["sampling"]["seed"]) == ("a", 1)


def test_metrics_are_summed_over_labels_and_followed():
    history = History(60)
    history.add(parse(METRICS, 10.0))
    history.add(parse(METRICS.replace(" 5000", " 5100") + "broken{ 1\nx NaNN\n", 12.0))
    assert history.now("vllm:num_requests_running") == 3
    assert history.rates("vllm:generation_tokens_total") == [50.0]
    assert history.share("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total") == 0.75
    assert history.first_token_seconds(0.25) == 0.25
    assert history.first_token_seconds(0.7) == 0.75
    assert history.first_token_seconds(0.99) == 1.0
    assert history.now("absent") is None
    assert history.share("absent", "absent") is None
    # Older ones are dropped, and so are those of a server that was started again.
    history.add(parse(METRICS, 71.0))
    assert len(history.course("vllm:num_requests_running")) == 2
    history.add(parse("vllm:prompt_tokens_total 1", 72.0))
    assert history.rates("vllm:prompt_tokens_total") == []
    assert History(1).first_token_seconds(0.5) is None
