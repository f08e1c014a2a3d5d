"""The web client in a real browser on the real server: the embedded model, and an adapter the trainer made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.client.pages import (
    Watched,
    ask,
    bot,
    launched_browser,
    pick,
    problem,
    send_button,
    set_number,
    tab,
    web_client,
)
from tests.e2e.conftest import NAME, LiveServer

pytestmark = [pytest.mark.browser, pytest.mark.model]

FIGURES = re.compile(
    r"first token .+ · [\d.]+ tokens/s · \d+ tokens in.*, \d+ out · (finished|cut)"
)
SECONDS = 90_000  # for an answer on one thread of a busy machine


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def address(server: LiveServer, volume: Path, votes: Path) -> Iterator[str]:
    with web_client(server.url, "--adapters", str(volume), "--votes", str(votes)) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Page]:
    watched = Watched(browser.new_context())
    page = watched.open(address)
    set_number(page, "Max new tokens", 24)
    pick(page, "preset", "Exact")
    yield page
    watched.check()


def version(volume: Path) -> str:
    return f"{NAME}@{(volume / NAME / 'latest').resolve().name}"


def test_a_conversation_with_the_adapter_is_streamed_kept_and_goes_on(
    page: Page, volume: Path
) -> None:
    ask(page, "My computer won't start")
    text, note = bot(page)
    expect(note).to_have_text(FIGURES, timeout=SECONDS)
    expect(note).to_contain_text(version(volume))
    first = text.inner_text()
    assert first.strip()
    page.get_by_role("button", name="Retry").click()
    expect(send_button(page)).to_be_visible(timeout=SECONDS)
    expect(note).to_have_text(FIGURES, timeout=SECONDS)
    assert text.inner_text() == first  # greedy
    ask(page, "And then?")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    expect(bot(page)[1]).to_have_text(FIGURES, timeout=SECONDS)
    page.reload()
    expect(page.locator(".turn.assistant .body").first).to_have_text(first)


def test_stop_frees_the_server_and_a_prompt_that_is_too_long_says_by_how_much(
    page: Page, server: LiveServer
) -> None:
    set_number(page, "Max new tokens", 2000)
    pick(page, "chat-model", "base")
    ask(page, "Tell me a very long story about a king")
    expect(bot(page)[0]).to_contain_text(re.compile(r"\w+ \w+"), timeout=SECONDS)
    send_button(page, "Stop").click()
    expect(bot(page)[1]).to_contain_text("stopped after")
    for _ in range(100):
        if "outcome=cancelled" in server.log.read_text():
            break
        page.wait_for_timeout(100)
    assert "outcome=cancelled" in server.log.read_text()
    ask(page, "long " * 9000)
    expect(problem(page)).to_contain_text("maximum context length is 8192", timeout=SECONDS)
    expect(problem(page)).to_contain_text(re.compile(r"That is \d+ too many"))


def test_base_and_adapter_are_compared_voted_on_and_asked_the_reports_prompts(
    page: Page, votes: Path, volume: Path, tmp_path: Path
) -> None:
    tab(page, "Compare")
    ask(page, "My computer won't start", "compare-question")
    page.get_by_role("button", name="Left is better").click(timeout=SECONDS)
    expect(page.locator(".judge")).to_contain_text("written to")
    vote = json.loads(votes.read_text().splitlines()[-1])
    assert (vote["left"]["model"], vote["right"]["model"]) == ("base", version(volume))
    assert vote["chosen"][0]["content"] == vote["left"]["content"]

    set_number(page, "Max new tokens", 4)
    page.get_by_role("button", name="Prompt set").click()
    expect(page.locator("#prompts")).to_have_value(re.compile("^My computer won't start\n"))
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("5 prompts answered.")).to_be_visible(timeout=SECONDS)
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON", exact=True).click()
    download.value.save_as(tmp_path / "batch.json")
    rows = json.loads((tmp_path / "batch.json").read_text())
    # The report holds the greedy answers of both, cut at 4 tokens too.
    run = json.loads((volume / NAME / "latest" / "report" / "run.json").read_text())
    told = {answer["prompt"]: (answer["base"], answer["tuned"]) for answer in run["answers"]}
    assert {row["prompt"] for row in rows} == set(told)
    agreed = sum((row["left"], row["right"]) == told[row["prompt"]] for row in rows)
    assert agreed >= len(rows) - 1, (rows, told)


def test_adapters_opens_the_training_report_in_place(page: Page, volume: Path) -> None:
    tab(page, "Adapters")
    row = page.locator(".version").first
    expect(row).to_contain_text("served · latest")
    row.locator("summary").click()
    expect(row).to_contain_text("help-desk, small-talk")
    frame = page.frame_locator(f"iframe[title='Training report of {version(volume)}']")
    expect(frame.get_by_role("heading", name="Key figures")).to_be_visible()


def test_status_shows_what_the_server_measures(page: Page, server: LiveServer) -> None:
    has_metrics = httpx.get(f"{server.url}/metrics").status_code == 200
    ask(page, "Hi")
    expect(bot(page)[1]).to_have_text(FIGURES, timeout=SECONDS)
    tab(page, "Status")
    expect(page.get_by_role("heading", name="The server is ready.")).to_be_visible()
    if not has_metrics:
        expect(page.get_by_text("This server has no metrics")).to_be_visible()
        return
    figures = page.locator(".figures > div").filter(has_text="Tokens written")
    expect(figures.locator("dd")).to_have_text(re.compile(r"^[1-9]"))
