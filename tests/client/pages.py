"""Opens the web client in a real headless browser, and what the tests do on its pages."""

import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

expect.set_options(timeout=20_000)  # the default of 5 s is short on two cores that others use too

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
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
def web_client(server_url, *flags, env=None):
    """`python -m client ui` on a free port; gives its address."""
    command = [sys.executable, "-m", "client", "ui", "--port", "0", "--server", server_url, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            line = process.stdout.readline()
            match = re.match(r"Web client: (http://\S+)", line)
            assert match, f"the client did not start: {line!r}"
            yield match[1]
        finally:
            process.terminate()
            assert process.wait(60) == 0  # also with pages open


@contextmanager
def launched_browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        yield browser
        browser.close()


class Watched:
    """Pages of one browser context, and what they logged and asked for."""

    def __init__(self, context):
        self.context = context
        self.logged, self.hosts, self.refused, self.pages = [], set(), set(), []

    def open(self, address, width=1280, height=800, scheme="light", ready=True):
        page = self.context.new_page()
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme)
        self.pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", lambda m: m.type == "error" and self.logged.append(m.text))
        page.on("pageerror", lambda e: self.logged.append(str(e)))
        page.on("request", lambda r: self.hosts.add(urlsplit(r.url).hostname))
        page.on("requestfailed", lambda r: r.failure == "csp" and self.refused.add(r.url))
        if address is None:
            return page
        page.goto(address)
        expect(page.locator("#question")).to_be_visible(timeout=20_000)
        if ready:
            expect(page.locator("#status")).to_contain_text("Ready", timeout=20_000)
            expect(page.locator("#chat-model input")).not_to_have_value("")
        return page

    def check(self):
        """Nothing was logged as an error, and no host but this machine's loopback was asked."""
        for page in self.pages:
            if not page.is_closed() and page.url.startswith("http"):
                page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            page.close()
        assert self.logged == []
        # None: data: and blob:.
        assert self.hosts - {urlsplit(url).hostname for url in self.refused} <= {None, "127.0.0.1"}


def pick(page, picker, label):
    page.locator(f"#{picker} input").click()
    page.locator(f"#{picker}").get_by_role("option", name=label).first.click()


def ask(page, question, box="question"):
    page.locator(f"#{box}").fill(question)
    page.locator(f"#{box}").press("Enter")


def bot(page, where="lora-chat"):
    """The last answer's two parts: text and note."""
    turn = page.locator(f"{where} .turn.assistant").last
    return turn.locator(".body"), turn.locator(".note")


def problem(page, where="lora-chat"):
    return page.locator(f"{where} .turn.assistant").last.locator(".problem")


def send_button(page, name="Send", box="question"):
    return page.locator(f"#{box} + .send[aria-label={name}]")


def tab(page, name):
    page.get_by_role("tab", name=name).click()


def set_number(page, label, value):
    box = page.get_by_role("spinbutton", name=re.compile(label))
    box.fill(str(value))
    box.press("Tab")
