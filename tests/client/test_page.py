"""The page as a whole in a real headless browser: a server that goes, barriers, small screens, themes."""

import re

import pytest
from playwright.sync_api import expect

from tests.client.conftest import SCRIPTS
from tests.client.fake_server import FakeServer, running
from tests.client.pages import ask, bot, pick, problem, tab, web_client

pytestmark = pytest.mark.browser


def test_a_server_that_is_away_is_told_and_found_again(open_page):
    base, smalltalk = ("base", "base", None), ("smalltalk", "s@1", "base")
    server = FakeServer(SCRIPTS, models=[base])
    with running(server) as first:
        port = int(first.url.rpartition(":")[2])
    with web_client(first.url) as address:
        page = open_page(address, ready=False)
        expect(page.locator("#status")).to_contain_text("No server answers at http://127.0.0.1")
        ask(page, "Anybody?")
        expect(problem(page)).to_contain_text("No server answers")
        with running(server, port):
            expect(page.locator("#status")).to_contain_text("Ready", timeout=15_000)
            page.get_by_role("button", name="Retry").click()
            expect(bot(page)[1]).to_contain_text("finished")
            server.models.append(smalltalk)
            expect(page.locator("#status")).to_contain_text("1 adapter", timeout=15_000)
            pick(page, "chat-model", "smalltalk")
            tab(page, "Compare")
            expect(page.locator("#left-model input")).to_have_value("base")
            expect(page.locator("#right-model input")).to_have_value(re.compile("^smalltalk"))
        expect(page.locator("#status")).to_contain_text("No server answers", timeout=15_000)
        with running(server, port):
            expect(page.locator("#status")).to_contain_text("Ready", timeout=15_000)
            tab(page, "Chat")
            expect(page.locator("#chat-model input")).to_have_value(re.compile("^smalltalk"))
        page.close()  # before the client goes, or the page would complain


def test_a_client_that_was_started_again_goes_on_with_the_page(open_page, watched, server):
    with web_client(server.url) as address:
        page = open_page(address)
        pick(page, "chat-model", "smalltalk")
        ask(page, "Before")
        expect(bot(page)[1]).to_contain_text("finished")
    ask(page, "Meanwhile")
    expect(problem(page)).to_contain_text("The web client's own server does not answer.")
    with web_client(server.url, "--port", address.rpartition(":")[2]):
        # Gradio loads the page anew once it has found the client again; that may interrupt an answer.
        for _ in range(9):
            page.get_by_role("button", name="Retry").last.click()
            try:
                expect(bot(page)[1]).to_contain_text("finished", timeout=10_000)
                break
            except AssertionError:
                continue
        expect(bot(page)[1]).to_contain_text("finished")
        expect(page.locator(".turn.user")).to_have_text(
            [re.compile("Before"), re.compile("Meanwhile")]
        )
        server.models.append(("newcomer", "newcomer@1", "base"))
        try:
            pick(page, "chat-model", re.compile("newcomer"))
        finally:
            server.models.pop()
        page.close()
    assert all("ERR_CONNECTION_REFUSED" in line for line in watched.logged), watched.logged
    watched.logged.clear()


def test_the_status_comes_although_an_answer_is_lost(open_page, address):
    page = open_page(None)
    lost = []

    def lose(route):
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch())  # answered, but the answer never gets to the page

    page.route(re.compile("/gradio_api/run/"), lose)
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Ready", timeout=20_000)
    assert lost
    expect(page.locator("#chat-model input")).to_have_value(re.compile("^smalltalk"))


def test_no_serious_barrier_to_anyone(open_page, address):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(address)
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    serious = set()

    def look(name, width, height):
        page.set_viewport_size({"width": width, "height": height})
        for _ in ("dark", "light"):
            page.locator("#theme").click()
            serious.update(
                (name, width, violation["id"], node["html"][:200])
                for violation in axe.run(page).response["violations"]
                if violation["impact"] in {"serious", "critical"}
                for node in violation["nodes"]
            )

    for model, place in [("coder", 1), ("busy", 0)]:
        pick(page, "chat-model", model)
        ask(page, "Hi")
        expect(bot(page)[1] if place else problem(page)).to_contain_text(
            "finished" if place else "The server is busy"
        )
    page.get_by_role("button", name="More").click()
    look("chat", 1280, 800)
    page.locator("#settings .toggle-button").click()
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_role("button", name="Conversations").click()
    look("conversations", 390, 844)
    page.keyboard.press("Escape")
    tab(page, "Compare")
    ask(page, "Hi", "compare-question")
    expect(page.get_by_role("button", name="A tie")).to_be_visible()
    page.get_by_role("button", name="Show differences").click()
    look("compare", 390, 844)
    page.get_by_role("button", name="Prompt set").click()
    page.locator("#prompts").fill("Hi")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("1 prompts answered.")).to_be_visible()
    look("prompt set", 1280, 800)
    for name in ("Adapters", "Status"):
        tab(page, name)
        expect(page.locator("lora-panel h2:visible").first).to_be_visible()
        look(name, 1280, 800)
    assert serious == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(open_page, address, scheme):
    page = open_page(address, 390, 844, scheme)
    expect(page.locator("#system")).not_to_be_in_viewport()
    ask(page, "Hi")
    expect(bot(page)[1]).to_contain_text("finished")
    for name, box in [("Chat", "question"), ("Compare", "compare-question")]:
        tab(page, name)
        expect(page.locator(f"#{box}")).to_be_in_viewport()
        size = page.evaluate(
            "[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]"
        )
        assert size == [390, 844]
    tab(page, "Chat")
    page.get_by_role("button", name="Conversations").click()
    page.locator(".conversations .title").click()
    expect(page.locator(".conversations")).not_to_be_visible()
    page.locator("#settings .toggle-button").click()
    expect(page.locator("#system")).to_be_in_viewport()
    page.locator("#settings .toggle-button").click()


def test_the_chosen_theme_is_remembered(open_page, address):
    page = open_page(address, scheme="light")
    is_dark = "document.body.classList.contains('dark')"
    assert not page.evaluate(is_dark)
    page.locator("#theme").click()
    assert page.evaluate(is_dark)
    page.reload()
    expect(page.locator("#status")).to_contain_text("Ready")
    assert page.evaluate(is_dark)
    page.locator("#theme").click()
    assert not page.evaluate(is_dark)
