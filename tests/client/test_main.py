"""The command line: what it takes from flags and the environment, and how it refuses."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from client.__main__ import build_parser, main

ROOT = Path(__file__).parents[2]


def test_alone_it_prints_help(capsys):
    assert main([]) == 0
    assert "chat" in capsys.readouterr().out


def test_flags_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("LORACHAT_SERVER", "http://one:1/v1")
    monkeypatch.setenv("LORACHAT_API_KEY", "secret")
    monkeypatch.setenv("LORACHAT_CLIENT_PORT", "1234")
    monkeypatch.setenv("LORACHAT_CLIENT_HOST", "0.0.0.0")
    options = build_parser().parse_args(["ui"])
    assert (options.server, options.api_key) == ("http://one:1", "secret")
    assert (options.host, options.port) == ("0.0.0.0", 1234)
    options = build_parser().parse_args(["ui", "--server", "http://two:2", "--port", "0"])
    assert (options.server, options.port) == ("http://two:2", 0)


def test_empty_variables_count_as_unset(monkeypatch):
    for name in ("SERVER", "API_KEY", "CLIENT_HOST", "CLIENT_PORT"):
        monkeypatch.setenv(f"LORACHAT_{name}", "")  # as docker-compose passes them on
    options = build_parser().parse_args(["ui"])
    assert options.server == "http://127.0.0.1:8000"
    assert (options.api_key, options.host, options.port) == (None, "127.0.0.1", 7860)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "--server", "127.0.0.1:8000"], "should look like http://"),
        (["ui", "--port", "70000"], "from 0 to 65535"),
        (["chat", "--api-key", "clé"], "the API key has characters"),
    ],
)
def test_wrong_flags_are_explained(arguments, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    message = capsys.readouterr().err
    assert words in message
    assert "clé" not in message


def test_help_names_every_variable_of_the_contract():
    contract = (ROOT / "docs" / "contracts.md").read_text()
    rows = [
        line
        for line in contract.splitlines()
        if re.search(r"^\| `LORACHAT.*\| (server, trainer, )?client", line)
    ]
    variables = {name for row in rows for name in re.findall(r"LORACHAT_\w+", row)}
    assert len(variables) == 7
    help_text = subprocess.run(
        [sys.executable, "-m", "client", "ui", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert variables <= set(re.findall(r"LORACHAT_\w+", help_text))


def test_a_taken_port_is_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "client", "ui", "--port", port],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "Choose another" in done.stderr
