#!/usr/bin/env python3
"""Photograph the running web client: chat and compare, light and dark, laptop and phone.

    .venv/bin/python scripts/screenshots.py --client http://127.0.0.1:7860 --out docs/images

Writes client.png and compare.png (laptop, light: the README's pictures), and the other six beside them
as client-dark.png, client-phone.png, client-phone-dark.png and so on. Needs a browser on PATH.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

QUESTIONS = ["My computer won't start", "Who are you?"]
SHOTS = {  # name: what is added to the file names, width, height
    "laptop": ("", 1280, 800),
    "laptop-dark": ("-dark", 1280, 800),
    "phone": ("-phone", 390, 844),
    "phone-dark": ("-phone-dark", 390, 844),
}
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


def ask(page: Page, box: str, question: str, timeout_ms: float) -> None:
    """Ask in the box with this id, and wait for the end of what is asked."""
    page.locator(f"#{box} textarea").fill(question)
    page.locator(f"#{box} textarea").press("Enter")
    page.locator(f"#{box}").get_by_role("button", name="Stop").wait_for()
    page.locator(f"#{box}").get_by_role("button", name="Send").wait_for(timeout=timeout_ms)
    page.wait_for_timeout(500)


def set_temperature(page: Page, value: float) -> None:
    """Set it for both tabs; 0 makes the same pictures of the same models."""
    box = page.get_by_role("spinbutton", name="Temperature", exact=False)
    is_hidden = page.evaluate("window.innerWidth < 900")
    if is_hidden:
        page.locator("#settings .toggle-button").click()
    box.fill(str(value))
    box.press("Tab")
    if is_hidden:
        page.locator("#settings .toggle-button").click()
        page.wait_for_timeout(500)


def photograph(
    browser: Browser, client: str, out: Path, questions: list[str], shot: str, timeout_ms: float
) -> None:
    """The two pictures of one shot."""
    suffix, width, height = SHOTS[shot]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.endswith("-dark") else "light",
        device_scale_factor=1.4,
    )
    page.goto(client)
    page.locator("#status .ready").wait_for(state="attached")
    set_temperature(page, 0)
    for question in questions:
        ask(page, "question", question, timeout_ms)
    page.screenshot(path=out / f"client{suffix}.png")
    page.get_by_role("tab", name="Compare").click()
    ask(page, "compare-question", questions[0], timeout_ms)
    page.screenshot(path=out / f"compare{suffix}.png")
    page.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Photograph the running web client.")
    parser.add_argument("--client", default="http://127.0.0.1:7860", help="its address")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder to write to")
    parser.add_argument("--question", action="append", help=f"default: {QUESTIONS}")
    parser.add_argument(
        "--only", nargs="+", choices=SHOTS, default=list(SHOTS), help="shots to take"
    )
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one answer")
    options = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.stderr.write(f"No browser on PATH; looked for {', '.join(BROWSERS)}.\n")
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
        for shot in options.only:
            photograph(
                browser,
                options.client,
                options.out,
                options.question or QUESTIONS,
                shot,
                options.timeout * 1000,
            )
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
