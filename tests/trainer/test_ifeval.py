"""Checkable instructions through lm-eval: what they say of base and tuned, and what a reader is told when it cannot be.

lm-eval lives in an environment of its own, which `make test-ifeval` makes; without it, tests that run it are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from trainer.__main__ import main
from trainer.arguments import SHIPPED_INSTRUCTIONS
from trainer.errors import RetryableError, TrainerError
from trainer.ifeval import (
    ENVIRONMENT,
    MEASURES,
    Checkers,
    checkable_instructions,
    read_prompts,
    score,
)
from trainer.progress import Silent

needs_lm_eval = pytest.mark.skipif(
    not (ENVIRONMENT / ".stamp").exists(),  # an install under way is none
    reason="lm-eval is not installed: make test-ifeval",
)
ROWS = [
    {
        "key": number,
        "prompt": f"Say something about number {number}. Use no commas and the word river.",
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
        "kwargs": [{}, {"keywords": ["river"]}],
    }
    for number in range(24)
]


class Server(BaseHTTPRequestHandler):
    """Answers as OpenAI's API does. The obedient model follows both instructions, all others only the first."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen.append((self.headers["Authorization"], body))
        if self.is_busy:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        text = "The river is wide." if body["model"] == self.obedient else "The lake is wide."
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        content = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    obedient = "obedient"
    is_busy = False
    seen: list[tuple[str, Any]] = []  # noqa: RUF012 (of the one server of a test)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def adapter_folder(folder: Path, name: str) -> Path:
    """An adapter that only has a name: nothing is loaded of it."""
    home = folder / name / "latest"
    home.mkdir(parents=True)
    (home / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "tiny"}))
    (home / "manifest.json").write_text(json.dumps({"name": name}))
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(volume: Path, name: str, *more: str) -> int:
    return main(["evaluate", "--adapter", name, "--adapters", str(volume), "--rows", "0", *more])


def test_prompts_and_instructions_are_counted_as_ifeval_does() -> None:
    def sample(followed: list[bool]) -> dict[str, Any]:
        return {
            "prompt_level_strict_acc": all(followed),
            "inst_level_strict_acc": followed,
            "prompt_level_loose_acc": True,
            "inst_level_loose_acc": [True] * len(followed),
        }

    base = [sample([True]), sample([True, False, False])] * 20
    tuned = [sample([False]), sample([True, True, True])] * 20
    scores = {s.name.removeprefix("IFEval, "): s for s in score(base, tuned)}
    assert set(scores) == {label for label, _ in MEASURES}
    prompts = scores["prompts with all instructions followed, strict"]
    assert (prompts.base, prompts.tuned, prompts.verdict) == (0.5, 0.5, "no clear difference")
    single = scores["instructions followed, strict"]
    assert (single.base, single.tuned, single.verdict) == (0.5, 0.75, "better")
    assert scores["instructions followed, loose"].verdict == "no clear difference"


def test_what_is_missing_is_told_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = adapter_folder(tmp_path, "obedient")
    assert evaluate(volume, "obedient") == 3
    assert "--rows is 0 and there is no --ifeval" in capsys.readouterr().err
    assert evaluate(volume, "obedient", "--ifeval") == 3
    assert "name it with --server URL" in capsys.readouterr().err
    # An interpreter without lm-eval, as that of the project's own environment.
    more = ["--ifeval", "--server", "http://127.0.0.1:9", "--lm-eval", sys.executable]
    assert evaluate(volume, "obedient", *more) == 3
    told = capsys.readouterr().err
    assert "lm-eval with its IFEval checkers is not in" in told
    assert "scripts/setup-tools .venv-ifeval" in told
    for file in ("requirements/ifeval.txt", "requirements/constraints-ifeval.txt"):
        assert file in told
        assert (ENVIRONMENT.parent / file).is_file()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2 is not in google/IFEval's form"),
        (
            '{"key": 1, "prompt": "Hi", "instruction_id_list": ["a"], "kwargs": []}',
            "of the same length",
        ),
        (
            '{"key": 1, "prompt": "Hi", "instruction_id_list": ["a:b"], "kwargs": [{}]}',
            "no checker a:b",
        ),
        (
            '{"key": 1, "prompt": "Hi", "instruction_id_list": ["length_constraints:number_sentences"], '
            '"kwargs": [{"num_sentences": 2, "relation": "at least"}]}',
            "nltk.downloader punkt_tab",
        ),
    ],
)
def test_a_row_that_cannot_be_checked_is_named(line: str, words: str, tmp_path: Path) -> None:
    known = frozenset(
        {"punctuation:no_comma", "keywords:existence", "length_constraints:number_sentences"}
    )
    checkers = Checkers(Path(sys.executable), "0", known, has_sentences=False)
    path = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(TrainerError, match=words):
        read_prompts(path, checkers)


@pytest.mark.parametrize(
    ("error", "is_retryable", "words"),
    [
        ("requests.exceptions.HTTPError: 429 Client Error: Too Many Requests for url: u", True, "busy (429)"),
        ("requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: u", True, "busy (503)"),
        ("requests.exceptions.ConnectionError: HTTPConnectionPool(host='h', port=9)", True, "is the server running"),
        ("requests.exceptions.ReadTimeout: Read timed out.", True, "is the server running"),
        ("requests.exceptions.HTTPError: 404 Client Error: Not Found for url: u", False, "404 Client Error"),
        # What the server says must not be taken for its state.
        ("ValueError: Connect the cable, or HTTP 503", False, "Connect the cable"),
    ],
)  # fmt: skip
def test_what_lm_eval_met_decides_whether_another_try_is_worth_it(
    error: str, is_retryable: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As lm-eval leaves it: a traceback, then its progress bar.
    told = f"Traceback (most recent call last):\n  File ...\n{error}\nRequesting API:   0%|     | 0/1\n"
    monkeypatch.setattr(
        "trainer.ifeval._run",
        lambda command, *_: subprocess.CompletedProcess(command, 1, "", told),
    )
    checkers = Checkers(Path(sys.executable), "0", frozenset(), has_sentences=False)
    with pytest.raises(TrainerError) as raised:
        checkable_instructions("http://h:9", "mine", "base", ROWS[:1], 8, checkers, Silent())
    assert isinstance(raised.value, RetryableError) == is_retryable
    assert words in str(raised.value)


@needs_lm_eval
def test_better_is_called_better_and_worse_worse(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORACHAT_API_KEY", "sesame")
    volume = adapter_folder(tmp_path / "volume", "obedient")
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    more = ["--ifeval", str(rows), "--server", server, "--json", str(tmp_path / "scores.json")]
    assert evaluate(volume, "obedient", *more, "--max-new-tokens", "33") == 0
    printed = capsys.readouterr().out
    scores = {s["name"]: s for s in json.loads((tmp_path / "scores.json").read_text())["scores"]}
    prompts = scores["IFEval, prompts with all instructions followed, strict"]
    assert (prompts["base"], prompts["tuned"], prompts["verdict"]) == (0, 1, "better")
    single = scores["IFEval, instructions followed, loose"]
    assert (single["base"], single["tuned"], single["verdict"]) == (0.5, 1, "better")
    assert "(95 % between +1.000 and +1.000, 24 rows): better" in printed
    assert len(Server.seen) == 2 * len(ROWS)
    for authorization, body in Server.seen:
        assert authorization == "Bearer sesame"
        assert body["max_tokens"] == 33
        assert body["temperature"] == 0
        assert body["messages"] == [{"role": "user", "content": body["messages"][0]["content"]}]
    # The other way about: the server's base is what obeys.
    monkeypatch.setattr(Server, "obedient", "base")
    assert evaluate(volume, "obedient", *more) == 0
    assert capsys.readouterr().out.count(": worse") == 4


@needs_lm_eval
def test_a_busy_server_is_worth_another_try(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "is_busy", True)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    volume = adapter_folder(tmp_path / "volume", "obedient")
    assert evaluate(volume, "obedient", "--ifeval", str(rows), "--server", server) == 75
    assert "is busy (503)" in capsys.readouterr().err
    assert len(Server.seen) > 1  # lm-eval tried again before it gave up


@needs_lm_eval
def test_the_prompts_that_come_with_the_trainer_can_all_be_checked() -> None:
    from trainer.ifeval import find_checkers

    rows = read_prompts(SHIPPED_INSTRUCTIONS, find_checkers(ENVIRONMENT / "bin" / "python"))
    assert len(rows) == 40
    assert len({name for row in rows for name in row["instruction_id_list"]}) >= 20


@needs_lm_eval
def test_arguments_that_a_checker_does_not_take_are_told_before_anything_is_asked(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ROWS[0] | {"kwargs": [{}, {"words": ["river"]}]}
    rows = write_rows(tmp_path / "rows.jsonl", [ROWS[1], wrong])
    volume = adapter_folder(tmp_path / "volume", "obedient")
    assert evaluate(volume, "obedient", "--ifeval", str(rows), "--server", server) == 3
    assert "line 2: keywords:existence:" in capsys.readouterr().err
    assert Server.seen == []


@needs_lm_eval
def test_a_server_that_is_away_is_one_sentence_and_worth_another_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[:1])
    volume = adapter_folder(tmp_path / "volume", "obedient")
    away = ["--ifeval", str(rows), "--server", "http://127.0.0.1:9"]
    assert evaluate(volume, "obedient", *away) == 75
    assert "is the server running?" in capsys.readouterr().err
