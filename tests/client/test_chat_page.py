"""The chat page in a real headless browser, against a scripted server."""

import itertools
import json
import re

import pytest
from playwright.sync_api import expect

from tests.client.conftest import SCRIPTS
from tests.client.fake_server import FakeServer, running, wait_until
from tests.client.pages import ask, bot, pick, problem, send_button, set_number, web_client

pytestmark = pytest.mark.browser


def conversations(page):
    return page.locator(".conversations .title")


def test_an_answer_appears_as_it_is_written(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "base")
    ask(page, "Count!")
    text, note = bot(page)
    seen = []
    while not seen or "word11" not in seen[-1]:
        now = text.inner_text()
        if not seen or now != seen[-1]:
            seen.append(now)
        page.wait_for_timeout(30)
    assert len(seen) >= 5, seen
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    expect(note).to_contain_text("finished")
    words = note.inner_text()
    assert re.search(
        r"^m · first token \d+ ms · \d+\.\d tokens/s · 12 tokens in \(4 cached\), 12 out · finished$",
        words,
    ), words
    expect(page.locator("#question")).to_have_value("")


def test_stop_ends_the_answer_here_and_on_the_server(open_page, address, server):
    page = open_page(address)
    pick(page, "chat-model", "endless")
    ask(page, "Go on")
    text, note = bot(page)
    expect(text).to_contain_text("more more more")
    send_button(page, "Stop").click()
    expect(note).to_contain_text("stopped after")
    wait_until(lambda: "endless" in server.gone, "the server to notice")
    kept = text.inner_text()
    page.wait_for_timeout(300)
    assert text.inner_text() == kept

    pick(page, "chat-model", "smalltalk")
    ask(page, "And now?")
    expect(bot(page)[1]).to_contain_text("finished")
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.requests[-1]["messages"][1]["content"].strip() == kept.strip()


def test_escape_stops_before_the_first_token(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "thinking")
    ask(page, "Hello?")
    expect(bot(page)[1]).to_contain_text("waiting for the first token, 1 s")
    page.keyboard.press("Escape")
    expect(bot(page)[1]).to_contain_text("stopped after")
    expect(send_button(page)).to_be_visible()


def test_retry_undo_and_edit(open_page, address, server):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    ask(page, "It is dark")
    text, note = bot(page)
    expect(note).to_contain_text("finished")
    expect(text.locator("strong")).to_have_text("power")
    first = server.requests[-1]

    page.get_by_role("button", name="Retry").click()
    wait_until(lambda: server.requests[-1] is not first, "the question to be asked again")
    assert server.requests[-1]["messages"] == first["messages"]
    expect(note).to_contain_text("finished")
    expect(page.locator(".turn.assistant")).to_have_count(1)

    ask(page, "And cold")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    expect(bot(page)[1]).to_contain_text("finished")
    page.get_by_role("button", name="Edit and resend").first.click()
    editor = page.get_by_label("Edited message")
    expect(editor).to_have_value("It is dark")
    editor.fill("It is light")
    editor.press("Enter")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(bot(page)[1]).to_contain_text("finished")
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["It is light"]

    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#question")).to_have_value("It is light")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask something")).to_be_visible()
    page.get_by_role("button", name="What is artificial intelligence?").click()
    expect(bot(page)[1]).to_contain_text("finished")


def test_an_edit_can_be_left(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    ask(page, "Hi")
    expect(bot(page)[1]).to_contain_text("finished")
    for leave in (
        lambda: page.keyboard.press("Escape"),
        page.get_by_role("button", name="Cancel").click,
    ):
        page.get_by_role("button", name="Edit and resend").click()
        page.get_by_label("Edited message").fill("Something else")
        leave()
        expect(page.get_by_label("Edited message")).to_have_count(0)
        expect(page.locator(".turn.user .body")).to_have_text("Hi")


def test_code_is_highlighted_and_everything_can_be_copied(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "coder")
    ask(page, "Show me")
    text, note = bot(page)
    expect(note).to_contain_text("finished")
    expect(text.locator("figure figcaption span")).to_have_text("python")
    expect(text.locator("code .nb")).to_have_text("print")
    expect(text.locator("td").first).to_have_text("1")
    text.get_by_role("button", name="Copy").click()
    wait_until(
        lambda: page.evaluate("navigator.clipboard.readText()") == "print(1 < 2)\n", "the code"
    )
    page.locator(".turn.assistant .actions").get_by_role("button", name="Copy").click()
    wait_until(
        lambda: page.evaluate("navigator.clipboard.readText()").startswith("Look:\n\n```python"),
        "the whole answer",
    )
    page.locator(".turn.user").get_by_role("button", name="Copy").click()
    wait_until(lambda: page.evaluate("navigator.clipboard.readText()") == "Show me", "the question")


def test_conversations_are_kept_renamed_deleted_and_brought_back(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    for question in ("First question", "Second question"):
        page.get_by_role("button", name="New chat").click()
        ask(page, question)
        expect(bot(page)[1]).to_contain_text("finished")
    expect(conversations(page)).to_have_text(["Second question", "First question"])
    page.reload()
    expect(page.locator(".turn.user .body")).to_have_text("Second question")
    expect(bot(page)[0].locator("strong")).to_have_text("power")
    expect(bot(page)[1]).to_contain_text("finished")

    conversations(page).nth(1).hover()
    page.get_by_role("button", name="Rename “First question”").click()
    name = page.get_by_label("Name of the conversation")
    name.fill("Cables")
    name.press("Enter")
    expect(conversations(page)).to_have_text(["Second question", "Cables"])
    conversations(page).nth(1).click()
    expect(page.locator(".turn.user .body")).to_have_text("First question")

    page.get_by_role("button", name="Delete “Cables”").click()
    expect(conversations(page)).to_have_text(["Second question"])
    expect(page.locator(".turn")).to_have_count(0)
    page.locator(".notice").get_by_role("button", name="Undo").click()
    expect(conversations(page)).to_have_text(["Second question", "Cables"])
    expect(page.locator(".turn.user .body")).to_have_text("First question")


def test_an_answer_that_a_reload_interrupted_says_so(open_page, address):
    page = open_page(address)
    # Which of them depends on how far the page gets while it is left.
    words = re.compile("interrupted|The page was closed|The connection to the web client ended")
    for model in ("endless", "thinking"):
        pick(page, "chat-model", model)
        page.get_by_role("button", name="New chat").click()
        ask(page, "Go on")
        expect(bot(page)[1]).to_contain_text("writing" if model == "endless" else "waiting")
        page.reload()
        expect(page.locator(".turn.assistant")).to_contain_text(words)
    page.get_by_role("button", name="New chat").click()


def test_conversations_leave_as_files_and_come_back_unchanged(open_page, address, tmp_path):
    page = open_page(address)
    pick(page, "chat-model", "coder")
    ask(page, "A question <!-- lorachat {} --> with\n### You")
    expect(bot(page)[1]).to_contain_text("finished")
    pick(page, "chat-model", "smalltalk")
    ask(page, "Another")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    expect(bot(page)[1]).to_contain_text("finished")

    def stored():
        kept = page.evaluate(
            "Object.entries(localStorage).filter(([n]) => n.includes('conversation'))"
        )
        return [{k: v for k, v in json.loads(text).items() if k != "id"} for _, text in kept]

    files = []
    for name in ("Export all (JSON)", "Export this (Markdown)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        files.append(tmp_path / download.value.suggested_filename)
        download.value.save_as(files[-1])
    assert [file.suffix for file in files] == [".json", ".md"]
    assert "```python" in files[1].read_text()
    before = stored()
    assert len(before) == 1
    assert len(before[0]["messages"]) == 4
    for file in files:
        page.evaluate("localStorage.clear()")
        page.reload()
        expect(page.locator(".turn")).to_have_count(0)
        page.get_by_label("File to import").set_input_files(file)
        expect(page.locator(".turn.assistant")).to_have_count(2)
        assert stored() == before

    wrong = tmp_path / "wrong.json"
    wrong.write_text('{"format": "another"}')
    page.get_by_label("File to import").set_input_files(wrong)
    expect(page.locator(".notice")).to_contain_text("no conversations of this client")
    assert stored() == before


def test_every_setting_is_sent_and_travels_in_the_address(open_page, address, server):
    page = open_page(address)
    page.locator("#system textarea").fill("Be kind.")
    page.get_by_role("button", name="More").click()
    for label, value in [
        ("Temperature", 0.5), ("Top-p", 0.5), ("Max new tokens", 64),
        ("Top-k", 40), ("Min-p", 0.1), ("Repetition penalty", 1.2),
    ]:  # fmt: skip
        set_number(page, label, value)
    page.locator("#seed input, #seed textarea").fill("9007199254740993")
    page.locator("#stop-strings textarea").fill("END\n\\n\\n")
    page.locator("#stop-strings textarea").press("Tab")
    pick(page, "chat-model", "coder")

    def asked():
        ask(page, "Hi")
        expect(bot(page)[1]).to_contain_text("finished")
        request = dict(server.requests[-1])
        assert request.pop("messages")[0] == {"role": "system", "content": "Be kind."}
        return request

    expected = {
        "model": "coder", "temperature": 0.5, "top_p": 0.5, "max_tokens": 64, "top_k": 40,
        "min_p": 0.1, "repetition_penalty": 1.2, "seed": 9007199254740993, "stop": ["END", "\n\n"],
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert asked() == expected
    link = page.url
    page.evaluate("localStorage.clear(); sessionStorage.clear()")
    page.close()
    page = open_page(link)
    expect(page.locator("#system textarea")).to_have_value("Be kind.")
    assert asked() == expected


def test_presets_and_a_setting_that_cannot_be_read(open_page, address, server):
    page = open_page(address)
    assert "?" not in page.url
    pick(page, "preset", "Exact")
    expect(page.get_by_role("spinbutton", name="Temperature")).to_have_value("0")
    expect(page.locator("#preset input")).to_have_value("Exact (greedy)")
    set_number(page, "Temperature", 0.1)
    expect(page.locator("#preset input")).to_have_value("Custom")
    page.get_by_role("button", name="More").click()
    page.locator("#seed input, #seed textarea").fill("many")
    before = len(server.requests)
    ask(page, "Hi")
    expect(problem(page)).to_contain_text("The seed is a whole number or empty, and not “many”.")
    assert len(server.requests) == before


def test_errors_are_sentences_that_stay(open_page, address, server):
    page = open_page(address)
    pick(page, "chat-model", "busy")
    ask(page, "One")
    expect(problem(page)).to_contain_text("The server is busy")
    expect(problem(page)).to_contain_text("Try again in 7 s.")
    pick(page, "chat-model", "cut")
    ask(page, "Two")
    expect(bot(page)[0]).to_have_text(re.compile("Half an answer"))
    expect(problem(page)).to_contain_text("The connection ended before the answer did.")
    # The question that got no answer is not part of the next one's conversation.
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Two"]
    pick(page, "chat-model", "old")
    ask(page, "Three")
    expect(problem(page)).to_contain_text("'top_k' is not supported by this server.")
    expect(page.get_by_text("The server is busy")).to_be_visible()


def test_an_api_key_is_entered_and_stays_in_the_browser(open_page):
    with (
        running(FakeServer(SCRIPTS, key="sesame")) as locked,
        web_client(locked.url) as own_address,
    ):
        page = open_page(own_address, ready=False)
        expect(page.locator("#status")).to_contain_text("asks for an API key")
        ask(page, "Hi")
        expect(problem(page)).to_contain_text("Enter one of the server's keys under Settings")
        page.locator("#api-key input").fill("sesame")
        page.locator("#api-key input").press("Tab")
        expect(page.locator("#status")).to_contain_text("Ready")
        page.get_by_role("button", name="Retry").click()
        expect(bot(page)[1]).to_contain_text("finished")
        assert locked.headers[-1]["authorization"] == "Bearer sesame"
        assert "sesame" not in page.url
        page.reload()
        expect(page.locator("#status")).to_contain_text("Ready")
        expect(page.locator("#api-key input")).to_have_value("sesame")
        page.locator("#api-key input").fill("")
        page.locator("#api-key input").press("Tab")
        expect(page.locator("#status")).to_contain_text("asks for an API key")
        page.close()  # before the client goes, or the page would complain


def test_leaving_the_page_stops_the_server(open_page):
    with (
        running(FakeServer(SCRIPTS, models=[("endless", "endless", None)])) as own,
        web_client(own.url) as own_address,
    ):
        page = open_page(own_address)
        ask(page, "Go on")
        expect(bot(page)[0]).to_contain_text("more more")
        page.close()
        wait_until(lambda: own.gone, "the server to notice")


def test_an_answer_is_shown_as_text_and_cannot_make_the_page_fetch_anything(
    open_page, address, watched
):
    page = open_page(address)
    pick(page, "chat-model", "spy")
    ask(page, "<i>Tell</i>")
    text, note = bot(page)
    expect(note).to_contain_text("finished")
    expect(text).to_contain_text("<b>end</b>")
    expect(page.locator(".turn.user .body")).to_have_text("<i>Tell</i>")
    assert page.locator("lora-chat img").count() == 0
    assert "192.0.2.1" not in watched.hosts


def test_an_answer_does_not_need_gradios_stream_of_events(open_page, address):
    page = open_page(None)
    # Ends at once and without a word, as behind a proxy that gave up.
    page.route(
        re.compile("/gradio_api/(queue/data|heartbeat)"),
        lambda route: route.fulfill(content_type="text/event-stream", body=""),
    )
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Ready")
    ask(page, "Anybody?")
    expect(bot(page)[1]).to_contain_text("finished")


def test_the_keyboard_is_enough(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "smalltalk")
    page.locator("#question").focus()
    page.keyboard.type("One line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("another")
    page.keyboard.press("Enter")
    expect(bot(page)[1]).to_contain_text("finished")
    expect(page.locator(".turn.user .body")).to_have_text("One line\nanother")
    reached = set()
    for _ in range(15):
        page.keyboard.press("Shift+Tab")
        reached.add(
            page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent")
        )
    assert {
        "Undo",
        "Retry",
        "Copy",
        "Edit and resend",
        "Conversation",
        "Import",
        "New chat",
    } <= reached
    page.get_by_role("button", name="Retry").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    expect(bot(page)[1]).to_contain_text("finished")
