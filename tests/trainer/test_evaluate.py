"""`evaluate` tells better from worse, and from what the rows do not tell."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.recipes import tiny_recipe
from trainer.__main__ import main as cli
from trainer.recipe_file import dump_recipe
from trainer.scores import compare, repetition


def test_a_difference_is_called_what_it_is() -> None:
    random = np.random.default_rng(1)
    base = random.normal(2, 1, 200).tolist()
    better = [value - 0.5 + random.normal(0, 0.1) for value in base]
    assert compare("loss", base, better, lower_is_better=True).verdict == "better"
    assert compare("loss", better, base, lower_is_better=True).verdict == "worse"
    assert compare("rate", better, base, lower_is_better=False).verdict == "better"
    noise = [value + random.normal(0, 1) for value in base]
    assert compare("loss", base, noise, lower_is_better=True).verdict == "no clear difference"


def test_means_are_weighted() -> None:
    score = compare("loss", [1, 3], [2, 2], [3, 1], lower_is_better=True)
    assert (score.base, score.tuned) == (1.5, 2)


def test_repetition() -> None:
    assert repetition("one two three") == 0
    assert repetition("a b c d " * 10) > 0.8


@pytest.fixture(scope="module")
def volume(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    recipe = tiny_recipe(tiny_model, folder, rows=60, training={"max_steps": 20})
    (folder / "mine.yaml").write_text(dump_recipe(recipe))
    arguments = ["--output", str(folder / "out"), "--adapters", str(folder / "adapters")]
    assert cli(["train", "--recipe", str(folder / "mine.yaml"), "--name", "tiny", *arguments]) == 0
    return folder / "adapters"


class Server(BaseHTTPRequestHandler):
    """Answers as OpenAI's API does; the base never ends by itself."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        finish = "length" if body["model"] == "base" else "stop"
        text = "again and again " * 5 if body["model"] == "base" else "fine"
        choice = {"message": {"content": text}, "finish_reason": finish}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_losses_here_and_answers_from_a_server(
    volume: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    arguments = ["--base", str(tiny_model), "--adapters", str(volume)]
    arguments += ["--server", f"http://127.0.0.1:{server.server_port}"]
    arguments += ["--json", str(tmp_path / "scores.json")]
    assert cli(["evaluate", "--adapter", "tiny", *arguments]) == 0
    server.shutdown()
    printed = capsys.readouterr().out
    assert "held-out loss, chats" in printed
    scores = {s["name"]: s for s in json.loads((tmp_path / "scores.json").read_text())["scores"]}
    assert scores["held-out loss, all"]["verdict"] == "better"
    assert scores["answers that end by themselves"]["verdict"] == "better"
    assert scores["repetition in answers"]["verdict"] == "better"
    assert scores["answers that end by themselves"]["rows"] == 12


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
