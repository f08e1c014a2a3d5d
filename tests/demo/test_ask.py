from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from demo.ask import ask_both
from demo.errors import DemoError
from tests.server.test_api import running


def test_both_answers_are_shown_beside_their_question() -> None:
    output = io.StringIO()
    console = Console(file=output, width=100)
    with running() as server:
        url = str(server.http.base_url)
        answers = asyncio.run(ask_both(url, ("base", "base"), console, ["What now?"]))
    assert answers == [["What now?", "What now?"]]
    assert output.getvalue().count("What now?") == 3


def test_a_refusal_and_a_server_that_is_away_are_sentences() -> None:
    console = Console(file=io.StringIO())
    with running() as server:
        url = str(server.http.base_url)
        with pytest.raises(DemoError, match="'nobody' does not exist"):
            asyncio.run(ask_both(url, ("base", "nobody"), console, ["x"]))
    with pytest.raises(DemoError, match="does not answer"):
        asyncio.run(ask_both(url, ("base", "base"), console, ["x"]))


def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO())
    with running(api_keys=["k1"]) as server:
        url = str(server.http.base_url)
        with pytest.raises(DemoError, match="No valid API key"):
            asyncio.run(ask_both(url, ("base",), console, ["x"]))
        monkeypatch.setenv("LORACHAT_API_KEY", "k1")
        assert asyncio.run(ask_both(url, ("base",), console, ["x"])) == [["x"]]
