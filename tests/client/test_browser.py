"""The web client in a real headless browser, against a scripted server.

Each test gets a page of its own, and none may log an error in the browser's console or ask any host
but this machine's loopback for anything.
"""

import itertools
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.client.fake_server import FakeServer, Script, answer, error, running, wait_until

pytestmark = pytest.mark.browser

SCRIPTS = {
    "base": Script(tuple(answer([f"word{n} " for n in range(12)])), 0.15),
    "smalltalk": Script(tuple(answer(["Check ", "the **power** ", "cable."])), 0.1),
    "endless": Script(tuple(answer(["more "] * 300)), 0.1),
    "thinking": Script((), ending="hang"),
    "busy": Script(status=429, body=error("queue full"), headers={"Retry-After": "7"}),
    "cut": Script(tuple(answer(["Half an ", "answer", "…"])[:2]), 0.05, ending="cut"),
    "spy": Script(tuple(answer(["![](http://192.0.2.1/?secret)", " <b>end</b>"]))),
}
BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def web_client(server_url):
    """`python -m client ui` on a free port; gives its address."""
    command = [sys.executable, "-m", "client", "ui", "--port", "0", "--server", server_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline()
            match = re.match(r"Web client: (http://\S+)", line)
            assert match, f"the client did not start: {line!r}"
            yield match[1]
        finally:
            process.terminate()
            assert process.wait(20) == 0  # also with pages open


@pytest.fixture(scope="module")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"no browser on PATH (looked for {', '.join(names)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server():
    models = [("base", "base", None), ("smalltalk", "smalltalk@2", "base")]
    models += [(name, f"{name}@1", "base") for name in SCRIPTS if name not in {"base", "smalltalk"}]
    with running(FakeServer(SCRIPTS, models=models)) as server:
        yield server


@pytest.fixture(scope="module")
def address(browser, server):
    with web_client(server.url) as address:
        yield address


@pytest.fixture(scope="module")
def context(browser):
    """What the pages share, so that only the first has to load Gradio's scripts."""
    return browser.new_context()


@pytest.fixture
def open_page(context):
    """Opens pages, and checks what they logged and asked for when the test is over."""
    pages, logged, hosts, refused = [], [], set(), set()

    def open_page(address, width=1280, height=800, scheme="light", ready=True):
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", lambda m: m.type == "error" and logged.append(m.text))
        page.on("pageerror", lambda e: logged.append(str(e)))
        page.on("request", lambda r: hosts.add(urlsplit(r.url).hostname))
        page.on("requestfailed", lambda r: r.failure == "csp" and refused.add(r.url))
        page.logged = logged
        if address is None:
            return page
        page.goto(address)
        expect(page.locator("#question textarea")).to_be_visible(timeout=20_000)
        if ready:
            expect(page.locator("#status")).to_contain_text("Ready", timeout=20_000)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert logged == []
    # What the browser refused by the page's own policy was never sent. None: data: and blob:.
    assert hosts - {urlsplit(url).hostname for url in refused} <= {None, "127.0.0.1"}


def pick(page, picker, label):
    page.locator(f"#{picker} input").click()
    page.locator(f"#{picker}").get_by_role("option", name=label).click()


def ask(page, question, box="question"):
    page.locator(f"#{box} textarea").fill(question)
    page.locator(f"#{box} textarea").press("Enter")


def bot(page, where="conversation"):
    """The last answer's two parts: text and note."""
    parts = page.locator(f"#{where} .bot-row").last.locator("[data-testid=bot]")
    return parts.first, parts.last


def test_an_answer_appears_as_it_is_written(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "base")
    ask(page, "Count!")
    text, note = bot(page)
    seen = []
    while not seen or "word11" not in seen[-1]:
        now = text.inner_text() if text.is_visible() else ""
        if not seen or now != seen[-1]:
            seen.append(now)
        page.wait_for_timeout(30)
    assert len(seen) >= 5, seen
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))
    expect(note).to_contain_text("finished")
    words = note.inner_text()
    assert re.search(
        r"base · first token \d+ ms · \d+\.\d tokens/s · 12 tokens in \(4 cached\), 12 out", words
    ), words
    expect(page.locator("#question textarea")).to_have_value("")


def test_stop_ends_the_answer_here_and_on_the_server(open_page, address, server):
    page = open_page(address)
    pick(page, "chat-model", "endless")
    ask(page, "Go on")
    text, note = bot(page)
    expect(text).to_contain_text("more more more")
    page.get_by_role("button", name="Stop").click()
    expect(note).to_contain_text("stopped after")
    wait_until(lambda: "endless" in server.gone, "the server to notice")
    kept = text.inner_text()
    page.wait_for_timeout(500)
    assert text.inner_text() == kept

    pick(page, "chat-model", "smalltalk")
    ask(page, "And now?")
    expect(bot(page)[1]).to_contain_text("finished")
    roles = [message["role"] for message in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert server.requests[-1]["messages"][1]["content"].strip() == kept.strip()


def test_stop_works_before_the_first_token(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "thinking")
    ask(page, "Hello?")
    expect(bot(page)[1]).to_contain_text("waiting for the first token, 1 s")
    page.get_by_role("button", name="Stop").click()
    expect(bot(page)[1]).to_contain_text("stopped after")
    expect(page.get_by_role("button", name="Send").first).to_be_visible()


def test_retry_undo_and_clear(open_page, address, server):
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
    expect(page.locator("#conversation .bot-row")).to_have_count(1)

    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#question textarea")).to_have_value("It is dark")
    expect(page.locator("#conversation .bot-row")).to_have_count(0)

    page.locator("#question textarea").press("Enter")
    expect(bot(page)[1]).to_contain_text("finished")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Ask something")).to_be_visible()


def test_clearing_in_mid_answer_stays_clear(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "endless")
    ask(page, "Go on")
    expect(bot(page)[0]).to_contain_text("more more")
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Ask something")).to_be_visible()
    page.wait_for_timeout(1500)
    expect(page.get_by_text("Ask something")).to_be_visible()
    expect(page.get_by_role("button", name="Send").first).to_be_visible()


def test_settings_are_sent(open_page, address, server):
    page = open_page(address)
    page.locator("#system textarea").fill("Be kind.")
    for label, value in [("Temperature", "0"), ("Top-p", "0.5"), ("Max new tokens", "64")]:
        box = page.get_by_role("spinbutton", name=re.compile(label))
        box.fill(value)
        box.press("Tab")
    ask(page, "Hi")
    expect(bot(page)[1]).to_contain_text("finished")
    request = server.requests[-1]
    assert request["messages"][0] == {"role": "system", "content": "Be kind."}
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0, 0.5, 64)
    assert request["model"] == "smalltalk"


def test_errors_are_sentences_that_stay(open_page, address, server):
    page = open_page(address)
    pick(page, "chat-model", "busy")
    ask(page, "One")
    expect(bot(page)[1]).to_contain_text("The server is busy")
    expect(bot(page)[1]).to_contain_text("Try again in 7 s.")
    pick(page, "chat-model", "cut")
    ask(page, "Two")
    expect(bot(page)[0]).to_have_text(re.compile("Half an answer"))
    expect(bot(page)[1]).to_contain_text("The connection ended before the answer did.")
    # The question that got no answer is not part of the next one's conversation.
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Two"]
    page.wait_for_timeout(1000)
    expect(page.get_by_text("The server is busy")).to_be_visible()
    expect(page.get_by_text("Traceback")).to_have_count(0)


def test_compare_asks_both_at_once(open_page, address, server):
    page = open_page(address)
    page.get_by_role("tab", name="Compare").click()
    before = len(server.requests)
    ask(page, "My computer is dead", "compare-question")
    left, right = bot(page, "left"), bot(page, "right")
    # The fast one is done while the slow one is still writing.
    expect(right[1]).to_contain_text("finished")
    assert "writing" in left[1].inner_text()
    expect(left[1]).to_contain_text("finished")
    expect(left[0]).to_contain_text("word11")
    expect(right[0]).to_have_text(re.compile(r"Check the power cable\."))
    assert {request["model"] for request in server.requests[before:]} == {"base", "smalltalk"}

    pick(page, "right-model", "busy")
    ask(page, "And then?", "compare-question")
    expect(right[1]).to_contain_text("The server is busy")
    expect(left[1]).to_contain_text("finished")


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


def test_an_answer_cannot_make_the_page_fetch_anything(open_page, address):
    page = open_page(address)
    pick(page, "chat-model", "spy")
    ask(page, "Tell")
    expect(bot(page)[1]).to_contain_text("finished")
    page.wait_for_timeout(500)
    # The browser says that it refused; that is the one error this page may log.
    assert all("Content Security Policy" in text for text in page.logged)
    page.logged.clear()


def test_a_server_that_is_away_is_told_and_found_again(open_page):
    base, smalltalk = ("base", "base", None), ("smalltalk", "s@1", "base")
    server = FakeServer(SCRIPTS, models=[base])
    with running(server) as first:
        port = int(first.url.rpartition(":")[2])
    with web_client(first.url) as address:
        page = open_page(address, ready=False)
        expect(page.locator("#status")).to_contain_text("No server answers at http://127.0.0.1")
        ask(page, "Anybody?")
        expect(bot(page)[1]).to_contain_text("No server answers")
        with running(server, port):
            expect(page.locator("#status")).to_contain_text("Ready", timeout=15_000)
            page.get_by_role("button", name="Retry").click()
            expect(bot(page)[1]).to_contain_text("finished")
            server.models.append(smalltalk)
            expect(page.locator("#status")).to_contain_text("1 adapter", timeout=15_000)
            pick(page, "chat-model", "smalltalk")
            page.get_by_role("tab", name="Compare").click()
            expect(page.locator("#left-model input")).to_have_value("base")
            expect(page.locator("#right-model input")).to_have_value(re.compile("^smalltalk"))
        expect(page.locator("#status")).to_contain_text("No server answers", timeout=15_000)
        with running(server, port):
            expect(page.locator("#status")).to_contain_text("Ready", timeout=15_000)
            page.get_by_role("tab", name="Chat").click()
            expect(page.locator("#chat-model input")).to_have_value(re.compile("^smalltalk"))
        page.close()  # before the client goes, or the page would complain


def test_the_status_comes_although_an_answer_is_lost(open_page, address):
    page = open_page(None)
    lost = []

    def lose(route):
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch())  # answered, but the answer never gets to the page

    def end(route):
        route.fulfill(content_type="text/event-stream", body="")

    page.route(re.compile("/gradio_api/run/"), lose)
    page.route(re.compile("/gradio_api/queue/data"), end)
    page.goto(address)
    expect(page.locator("#status")).to_contain_text("Ready", timeout=20_000)
    assert lost
    expect(page.locator("#chat-model input")).to_have_value(re.compile("^smalltalk"))


def test_no_serious_barrier_to_anyone(open_page, address):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(address)
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")
    serious = set()

    def look(tab, width, height):
        page.set_viewport_size({"width": width, "height": height})
        for _ in ("dark", "light"):
            page.locator("#theme").click()
            serious.update(
                (tab, width, violation["id"], node["html"])
                for violation in axe.run(page).response["violations"]
                if violation["impact"] in {"serious", "critical"}
                for node in violation["nodes"]
            )

    for model, words in [("smalltalk", "finished"), ("busy", "The server is busy")]:
        pick(page, "chat-model", model)
        ask(page, "Hi")
        expect(bot(page)[1]).to_contain_text(words)
    look("chat", 1280, 800)
    page.locator("#settings .toggle-button").click()
    look("chat", 390, 844)
    page.get_by_role("tab", name="Compare").click()
    ask(page, "Hi", "compare-question")
    expect(bot(page, "left")[1]).to_contain_text("finished")
    look("compare", 390, 844)
    look("compare", 1280, 800)
    assert serious == set()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(open_page, address, scheme):
    page = open_page(address, 390, 844, scheme)
    expect(page.locator("#system")).not_to_be_in_viewport()
    ask(page, "Hi")
    expect(bot(page)[1]).to_contain_text("finished")
    for tab, box in [("Chat", "question"), ("Compare", "compare-question")]:
        page.get_by_role("tab", name=tab).click()
        expect(page.locator(f"#{box} textarea")).to_be_in_viewport()
        width, height = page.evaluate(
            "[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]"
        )
        assert (width, height) == (390, 844)
    page.locator("#settings .toggle-button").click()
    expect(page.locator("#system")).to_be_in_viewport()
    page.locator("#settings .toggle-button").click()
    is_dark = page.evaluate("document.body.classList.contains('dark')")
    assert is_dark is (scheme == "dark")
    page.locator("#theme").click()
    assert page.evaluate("document.body.classList.contains('dark')") is not is_dark
