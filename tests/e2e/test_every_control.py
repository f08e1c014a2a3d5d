"""Every control of the web client, each used at least once, on the real server with the embedded model.

The server asks for an API key and the client for a user and a password, as they would on a network. What a control does
in every case is tested beside the client, with a scripted server; here it is that it does it with the real one.
"""

from __future__ import annotations

import csv
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from tests.e2e.conftest import NAME, live_server

pytestmark = [pytest.mark.browser, pytest.mark.model]

KEY = "sesame-of-the-browser"
SECONDS = 90_000  # for an answer on one thread of a busy machine


@pytest.fixture(scope="module")
def votes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def address(
    embedded_model: Path, volume: Path, votes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("server") / "server.log"
    login = ("--login", "ada:love")
    with (
        live_server(embedded_model, volume, log, "--api-keys", KEY) as server,
        web_client(server.url, "--adapters", str(volume), "--votes", str(votes), *login) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched_browser() as browser:
        yield browser


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    context = browser.new_context(
        http_credentials={"username": "ada", "password": "love"},
        permissions=["clipboard-read", "clipboard-write"],
    )
    watched = Watched(context)
    yield watched
    watched.check()


@pytest.fixture
def page(watched: Watched, address: str) -> Page:
    """The chat, with the key entered, short greedy answers and the adapter picked."""
    page = watched.open(address, ready=False)
    expect(page.locator("#status")).to_contain_text("asks for an API key")
    page.locator("#api-key input").fill(KEY)
    page.locator("#api-key input").press("Tab")
    expect(page.locator("#status")).to_contain_text("Ready")
    pick(page, "preset", "Exact")
    set_number(page, "Max new tokens", 8)
    pick(page, "chat-model", NAME)
    return page


def answered(page: Page, count: int = 1) -> str:
    """The last answer, once it is whole and `count` are there."""
    expect(page.locator(".turn.assistant")).to_have_count(count)
    expect(send_button(page)).to_be_visible(timeout=SECONDS)
    expect(bot(page)[1]).to_have_text(re.compile("finished|cut"), timeout=SECONDS)
    text: str = bot(page)[0].inner_text()
    return text


def conversations(page: Page) -> Any:
    return page.locator("#history .title")


def test_a_user_is_asked_for_and_the_key_stays_in_the_browser(
    page: Page, browser: Any, address: str
) -> None:
    stranger = browser.new_context(http_credentials={"username": "ada", "password": "wrong"})
    assert stranger.new_page().goto(address).status == 401
    stranger.close()
    ask(page, "Hello")
    assert answered(page)
    assert KEY not in page.url
    assert KEY not in json.dumps(page.context.cookies())
    kept = page.evaluate(
        "Object.entries(localStorage).filter(([, text]) => text.includes('sesame'))"
    )
    assert kept == [["lorachat.key", KEY]]
    page.locator("#api-key input").fill("wrong")
    page.locator("#api-key input").press("Tab")
    ask(page, "Hello again")
    expect(problem(page)).to_contain_text(re.compile("key", re.IGNORECASE))


def test_all_settings_reach_the_server_and_a_colleague(
    page: Page, watched: Watched, address: str
) -> None:
    page.locator("#system textarea").fill("Answer in one word.")
    page.get_by_role("button", name="More").click()
    slider = page.get_by_role("slider", name=re.compile("Temperature"))
    slider.focus()
    for _ in range(4):
        slider.press("ArrowRight")
    expect(page.get_by_role("spinbutton", name=re.compile("Temperature"))).to_have_value("0.2")
    for label, value in [
        ("Top-p", 0.9), ("Top-k", 40), ("Min-p", 0.05), ("Repetition penalty", 1.1),
    ]:  # fmt: skip
        set_number(page, label, value)
    page.locator("#seed input, #seed textarea").fill("7")
    # So that it is seen to be honoured: an answer has a space after its first word.
    page.locator("#stop-strings textarea").fill(" ")
    page.locator("#stop-strings textarea").press("Tab")
    ask(page, "My computer won't start")
    text = answered(page)
    assert len(text.split()) <= 1
    expect(bot(page)[1]).to_contain_text("finished")
    page.get_by_role("button", name="Retry").click()
    assert answered(page) == text  # the seed

    colleague = watched.open(page.url)  # the same browser, so with the key
    expect(colleague.locator("#system textarea")).to_have_value("Answer in one word.")
    colleague.get_by_role("button", name="More").click()
    for label, shown in [
        ("Temperature", "0.2"), ("Top-p", "0.9"), ("Max new tokens", "8"), ("Top-k", "40"),
        ("Min-p", "0.05"), ("Repetition penalty", "1.1"),
    ]:  # fmt: skip
        expect(colleague.get_by_role("spinbutton", name=re.compile(label))).to_have_value(shown)
    expect(colleague.locator("#stop-strings textarea")).to_have_value(" ")
    colleague.get_by_role("button", name="New chat").click()
    ask(colleague, "My computer won't start")
    assert answered(colleague) == text
    pick(colleague, "preset", "Creative")
    expect(colleague.locator("#preset input")).to_have_value(re.compile("Creative"))


def test_a_conversation_is_edited_taken_back_copied_named_and_carried_elsewhere(
    page: Page, tmp_path: Path
) -> None:
    page.locator("#theme").click()
    page.get_by_role("button", name=re.compile(r"\?$")).first.click()  # one of those to start with
    answered(page)
    ask(page, "And then?")
    second = answered(page, 2)
    page.locator(".turn.assistant .actions").last.get_by_role("button", name="Copy").click()
    page.wait_for_function(
        "async (text) => (await navigator.clipboard.readText()).trim() === text", arg=second.strip()
    )
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#question")).to_have_value("And then?")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    page.locator("#question").fill("")
    page.get_by_role("button", name="Edit and resend").first.click()
    page.get_by_label("Edited message").fill("My printer is not printing")
    page.get_by_label("Edited message").press("Enter")
    first = answered(page)
    set_number(page, "Max new tokens", 600)
    page.get_by_role("button", name="New chat").click()
    pick(page, "chat-model", "base")
    ask(page, "Tell me a very long story")
    expect(bot(page)[0]).to_contain_text(re.compile(r"\w+ \w+"), timeout=SECONDS)
    send_button(page, "Stop").click()
    expect(bot(page)[1]).to_contain_text("stopped after")
    expect(conversations(page)).to_have_count(2)

    printer = conversations(page).nth(1)
    printer.hover()
    page.get_by_role("button", name=re.compile("^Rename")).nth(1).click()
    page.get_by_label("Name of the conversation").fill("Printers")
    page.get_by_label("Name of the conversation").press("Enter")
    conversations(page).first.hover()  # which shows the buttons
    page.get_by_role("button", name=re.compile("^Delete “Tell me")).click()
    page.locator(".notice").get_by_role("button", name="Undo").click()
    expect(conversations(page)).to_have_count(2)
    conversations(page).first.hover()  # which shows the buttons
    page.get_by_role("button", name=re.compile("^Delete “Tell me")).click()
    expect(conversations(page)).to_have_text(["Printers"])
    conversations(page).first.click()
    expect(bot(page)[0]).to_have_text(first)
    for name in ("Export all (JSON)", "Export this (Markdown)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        conversations(page).first.hover()
        page.get_by_role("button", name=re.compile("^Delete “Printers")).click()
        expect(page.locator(".turn")).to_have_count(0)
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Import").click()
        chooser.value.set_files(file)
        expect(bot(page)[0]).to_have_text(first)
        expect(conversations(page)).to_have_text(["Printers"])


def test_a_comparison_is_marked_voted_on_every_way_and_cleared(page: Page, votes: Path) -> None:
    tab(page, "Compare")
    verdicts = ["Left is better", "Right is better", "A tie", "Both are bad"]
    for verdict in verdicts:
        pick(page, "left-model", "base")
        pick(page, "right-model", re.compile(f"^{NAME}@"))
        ask(page, "My computer won't start", "compare-question")
        page.get_by_role("button", name="Show differences").click(timeout=SECONDS)
        expect(page.locator("#right ins, #left del").first).to_be_visible()
        page.get_by_role("button", name=re.compile("Hide differences")).click()
        page.get_by_role("button", name=verdict).click()
        expect(page.locator(".judge")).to_contain_text("written to")
        page.get_by_role("button", name="Clear both").click()
        expect(page.locator("lora-compare .turn")).to_have_count(0)
    kept = [json.loads(line) for line in votes.read_text().splitlines()]
    assert [vote["verdict"] for vote in kept] == ["left", "right", "tie", "neither"]
    assert [bool(vote["chosen"]) for vote in kept] == [True, True, False, False]
    assert kept[0]["chosen"] == kept[1]["rejected"]  # greedy, so the same answers both times


def test_a_prompt_set_is_run_stopped_filled_in_and_exported(page: Page, tmp_path: Path) -> None:
    tab(page, "Compare")
    page.get_by_role("button", name="Prompt set").click()
    page.locator("#prompts").fill("One\nTwo\nThree")
    set_number(page, "Max new tokens", 600)
    page.get_by_label("Greedy").uncheck()
    page.get_by_role("button", name="Run").click()
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_text(re.compile("Stopped after [01] of 3"))).to_be_visible(timeout=SECONDS)
    page.get_by_label("Greedy").check()
    set_number(page, "Max new tokens", 4)
    page.get_by_role("button", name="Fill in the report's prompts").click()
    expect(page.locator("#prompts")).to_have_value(re.compile("^My computer won't start\n"))
    page.locator("#prompts").fill("My computer won't start\nHello")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("2 prompts answered.")).to_be_visible(timeout=SECONDS)
    files = {}
    for form in ("CSV", "JSON", "Markdown"):
        with page.expect_download() as download:
            page.get_by_role("button", name=form, exact=True).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        files[form] = path.read_text("utf-8")
    rows = json.loads(files["JSON"])
    assert [row["prompt"] for row in rows] == ["My computer won't start", "Hello"]
    table = list(csv.DictReader(files["CSV"].splitlines()))
    assert [row["left"] for row in table] == [row["left"] for row in rows]
    assert rows[0]["right"].splitlines()[0] in files["Markdown"]


def test_a_server_that_goes_is_told_and_found_again_with_the_settings_kept(
    embedded_model: Path, volume: Path, tmp_path: Path, watched: Watched
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with web_client(f"http://127.0.0.1:{port}", "--login", "ada:love") as own:
        with live_server(embedded_model, volume, tmp_path / "first.log", port=port):
            page = watched.open(own)
            set_number(page, "Max new tokens", 4)
            pick(page, "chat-model", NAME)
            ask(page, "Before")
            answered(page)
        expect(page.locator("#status")).to_contain_text("No server answers", timeout=SECONDS)
        ask(page, "Meanwhile")
        expect(problem(page)).to_contain_text("No server answers")
        with live_server(embedded_model, volume, tmp_path / "second.log", port=port):
            expect(page.locator("#status")).to_contain_text("Ready", timeout=SECONDS)
            page.get_by_role("button", name="Retry").last.click()
            assert answered(page, 2)
            expect(page.locator("#chat-model input")).to_have_value(re.compile(f"^{NAME}"))
            expect(page.get_by_role("spinbutton", name=re.compile("Max new"))).to_have_value("4")
            page.close()  # before the client goes, or the page would complain
