"""`evaluate` tells better from worse, and from what the rows do not tell."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.__main__ import main as cli
from trainer.recipe_file import dump_recipe
from trainer.scores import ENOUGH_ROWS, compare, repetition


def test_a_difference_is_called_what_it_is() -> None:
    random = np.random.default_rng(1)
    base = random.normal(2, 1, 200).tolist()
    better = [value - 0.5 + random.normal(0, 0.1) for value in base]
    assert compare("loss", base, better, lower_is_better=True).verdict == "better"
    assert compare("loss", better, base, lower_is_better=True).verdict == "worse"
    assert compare("rate", better, base, lower_is_better=False).verdict == "better"
    noise = [value + random.normal(0, 1) for value in base]
    assert compare("loss", base, noise, lower_is_better=True).verdict == "no clear difference"


@pytest.mark.parametrize("rows", [1, 2, 3, ENOUGH_ROWS - 1])
def test_a_few_rows_that_agree_tell_nothing(rows: int) -> None:
    base = [float(row % 3) for row in range(rows)]
    tuned = [value - 1 for value in base]
    score = compare("loss", base, tuned, lower_is_better=True)
    assert score.high < 0
    assert score.verdict == "too few rows to tell"
    enough = compare("loss", base * ENOUGH_ROWS, tuned * ENOUGH_ROWS, lower_is_better=True)
    assert enough.verdict == "better"


def test_means_are_weighted() -> None:
    score = compare("loss", [1, 3], [2, 2], [3, 1], lower_is_better=True)
    assert (score.base, score.tuned) == (1.5, 2)


def test_repetition() -> None:
    assert repetition("one two three") == 0
    assert repetition("a b c d " * 10) > 0.8


@pytest.fixture(scope="module")
def volume(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    recipe = tiny_recipe(tiny_model, folder, rows=120, training={"max_steps": 20})
    (folder / "mine.yaml").write_text(dump_recipe(recipe))
    shared = ["--recipe", str(folder / "mine.yaml"), "--adapters", str(folder / "adapters")]
    shorter = ["--set", "training.max_steps=3", "--no-publish"]
    for name, more in (
        ("tiny", []),
        ("hasty", ["--set", "training.max_steps=3"]),
        ("kept", shorter),
    ):
        output = ["--name", name, "--output", str(folder / name)]
        assert cli(["train", *shared, *output, *more]) == 0
    return folder / "adapters"


class Server(BaseHTTPRequestHandler):
    """Answers as OpenAI's API does; all but the adapter `tiny` never end by themselves."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.add(body["model"])
        is_tiny = body["model"].startswith("tiny@")
        finish = "stop" if is_tiny else "length"
        text = "fine" if is_tiny else "again and again " * 5
        choice = {"message": {"content": text}, "finish_reason": finish}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    asked: set[str] = set()  # noqa: RUF012 (of the one server of a test)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked = set()
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_losses_here_and_answers_from_a_server(
    server: str,
    volume: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--base", str(tiny_model), "--adapters", str(volume)]
    arguments += ["--server", server, "--json", str(tmp_path / "scores.json")]
    assert cli(["evaluate", "--adapter", "tiny", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "held-out loss, chats" in printed
    scores = {s["name"]: s for s in json.loads((tmp_path / "scores.json").read_text())["scores"]}
    assert scores["held-out loss, all"]["verdict"] == "better"
    assert scores["answers that end by themselves"]["verdict"] == "better"
    assert scores["repetition in answers"]["verdict"] == "better"
    assert scores["answers that end by themselves"]["rows"] == 20


def test_against_another_adapter_its_figures_are_those_it_has_itself(
    server: str,
    volume: Path,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def evaluate(adapter: str, *more: str) -> dict[str, Any]:
        path = tmp_path / "scores.json"
        arguments = ["--base", str(tiny_model), "--adapters", str(volume), "--json", str(path)]
        assert cli(["evaluate", "--adapter", adapter, "--answers", "20", *arguments, *more]) == 0
        written: dict[str, Any] = json.loads(path.read_text())
        return written

    def by_name(written: dict[str, Any]) -> dict[str, Any]:
        return {score["name"]: score for score in written["scores"]}

    at_server = ["--server", server]
    alone = by_name(evaluate("hasty", *at_server, "--against", "base"))
    assert {name.partition("@")[0] for name in Server.asked} == {"base", "hasty"}
    capsys.readouterr()
    Server.asked.clear()
    both = evaluate("tiny", *at_server, "--against", "hasty")
    assert {name.partition("@")[0] for name in Server.asked} == {"tiny", "hasty"}
    assert "base" not in Server.asked
    told = capsys.readouterr()
    assert re.search(r"held-out loss, all: hasty@\d{8}-\d{6}-\w{6} \d", told.out)
    assert "Warning" not in told.err
    assert both["against"] == str((volume / "hasty" / "latest").resolve())
    loss = by_name(both)["held-out loss, all"]
    assert loss["base"] == pytest.approx(alone["held-out loss, all"]["tuned"], abs=1e-6)
    assert loss["verdict"] == "better"
    assert by_name(both)["answers that end by themselves"]["verdict"] == "better"
    # The other way about, in this process, and against a folder that was not published.
    output = volume.parent / "kept"
    (kept,) = [path.parent for path in output.glob("*/adapter_config.json")]
    back = evaluate("tiny", "--against", str(kept), "--answers", "2", "--max-new-tokens", "4")
    assert "Nothing says that" in capsys.readouterr().err
    assert by_name(back)["held-out loss, all"]["base"] == pytest.approx(loss["base"], abs=1e-6)
    hasty = by_name(evaluate("hasty", "--against", "tiny", "--answers", "0"))
    assert hasty["held-out loss, all"]["verdict"] == "worse"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nothing", "the same version as --adapter"),
        ("weights", "belongs to another base"),
        ("name", "belongs to another base"),
        ("template", "another chat template"),
        ("no template", "nothing says which template"),
        ("missing", "There is no adapter"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_loaded(
    volume: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    words: str,
) -> None:
    monkeypatch.setattr("trainer.evaluate.evaluate", lambda *_, **__: pytest.fail("loaded"))
    ours = (volume / "tiny" / "latest").resolve()
    other = tmp_path / "other"
    shutil.copytree(ours, other)
    manifest = json.loads((other / "manifest.json").read_text())
    if change == "weights":
        manifest["base"]["weights_digest"] = "sha256:" + "0" * 64
    elif change == "name":
        manifest["base"] |= {"id": "another/model", "weights_digest": None}
        manifest["base"]["trained_on"]["id"] = "another/model"
    elif change == "template":
        (other / "chat_template.jinja").write_text("{{ messages }}")
    elif change == "no template":
        (other / "chat_template.jinja").unlink()
    (other / "manifest.json").write_text(json.dumps(manifest))
    given = {"nothing": ours, "missing": tmp_path / "nobody"}.get(change, other)
    arguments = ["--adapter", "tiny", "--adapters", str(volume), "--against", str(given)]
    assert cli(["evaluate", *arguments]) == 3
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


class Failing(BaseHTTPRequestHandler):
    """Answers every request with the status and body it was made with."""

    status, body = 200, b""

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "body", "exit_code", "words"),
    [
        (429, b'{"error": {"message": "Try later."}}', 75, "busy (429)"),
        (503, b'{"error": {"message": "Starting."}}', 75, "busy (503)"),
        (404, b'{"error": {"message": "No such model."}}', 3, "refused to answer as base"),
        (200, b"<html>a page</html>", 3, "no server of chat completions"),
        (200, b'{"choices": []}', 3, "no server of chat completions"),
    ],
)
def test_a_server_that_does_not_answer_is_told_before_the_losses_are_measured(
    volume: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: bytes,
    exit_code: int,
    words: str,
) -> None:
    monkeypatch.setattr("trainer.evaluate._losses", lambda *_: pytest.fail("measured"))
    handler = type("Handler", (Failing,), {"status": status, "body": body})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = ["--base", str(tiny_model), "--adapters", str(volume)]
    arguments += ["--server", f"http://127.0.0.1:{server.server_port}"]
    assert cli(["evaluate", "--adapter", "tiny", *arguments]) == exit_code
    server.shutdown()
    assert words in capsys.readouterr().err


def test_an_address_without_a_scheme_is_told(
    volume: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--base", str(tiny_model), "--adapters", str(volume)]
    assert cli(["evaluate", "--adapter", "tiny", *arguments, "--server", "127.0.0.1:8000"]) == 3
    assert "http://HOST:PORT" in capsys.readouterr().err


def test_answers_in_this_process_agree_with_the_losses(
    volume: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.adapters import find_adapter

    arguments = ["--base", str(tiny_model), "--adapters", str(volume), "--rows", "6"]
    arguments += ["--answers", "2", "--max-new-tokens", "4"]
    assert cli(["evaluate", "--adapter", "tiny", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "(95 % between" in printed
    manifest = find_adapter("tiny", volume).manifest
    assert manifest["metrics"]["held_out_loss"]["all"]["tuned"] < 7
    assert cli(["evaluate", "--adapter", "nobody", *arguments]) == 3
