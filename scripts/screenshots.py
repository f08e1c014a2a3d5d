"""Photograph every page of the web client, light and dark, laptop and phone, on the real server.

    make screenshots                                       all pictures, to .cache/screenshots
    .venv/bin/python -m scripts.screenshots --readme      the README's three, to docs/images

Starts the server with the embedded model and the adapters that `make demo` published, and the client; ends
both. Needs a browser on PATH. The same models give the same pictures: answers are greedy.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from demo.errors import DemoError
from demo.model import prepare
from demo.programs import Program, free_port

ROOT = Path(__file__).resolve().parent.parent
SHOTS = {  # name: what is added to the file names, width, height
    "laptop": ("", 1280, 800),
    "laptop-dark": ("-dark", 1280, 800),
    "phone": ("-phone", 390, 844),
    "phone-dark": ("-phone-dark", 390, 844),
}
README = ("chat", "compare", "adapters")
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
ANSWER_MILLISECONDS = 300_000
# The settings travel in the address.
SETTINGS = "?temperature=0&top_p=1&max_tokens=160"


def chat(page: Page) -> None:
    for question in ("My computer won't start", "Write a Python function that adds two numbers"):
        ask(page, "question", question)


def compare(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    ask(page, "compare-question", "My computer won't start")
    page.get_by_role("button", name="Show differences").click()
    page.get_by_role("button", name="Hide differences").wait_for()


def prompts(page: Page) -> None:
    page.get_by_role("button", name="Prompt set").click()
    page.locator("#prompts").fill("My computer won't start\nTell me a joke\nHow are you today?")
    page.get_by_role("button", name="Run").click()
    page.get_by_text("3 prompts answered.").wait_for(timeout=ANSWER_MILLISECONDS)


def adapters(page: Page) -> None:
    page.get_by_role("tab", name="Adapters").click()
    page.locator(".version summary").first.click()
    page.frame_locator(".version iframe").first.get_by_role(
        "heading", name="Key figures"
    ).wait_for()


def status(page: Page) -> None:
    page.get_by_role("tab", name="Status").click()
    page.locator(".whole .state").wait_for()
    page.wait_for_timeout(9000)  # until the lines have a few points


def settings(page: Page) -> None:
    """All of them; on a phone they lie over the page until they are closed."""
    page.get_by_role("tab", name="Chat").click()
    more = page.locator("#more > button")
    if not more.is_visible():
        page.locator("#settings .toggle-button").click()
    more.click()
    page.locator("#stop-strings").scroll_into_view_if_needed()
    page.wait_for_timeout(500)


def away(page: Page) -> None:
    """What the page says of a server that does not answer; the model's name is none it knows."""
    page.get_by_role("tab", name="Chat").click()
    page.route("**/lorachat/answers", lambda route: route.abort())
    ask(page, "question", "Are you there?")


# In this order: each goes on from the page of the one before it.
PAGES: dict[str, Callable[[Page], None]] = {
    "chat": chat,
    "compare": compare,
    "prompts": prompts,
    "adapters": adapters,
    "status": status,
    "away": away,
    "settings": settings,
}


def ask(page: Page, box: str, question: str) -> None:
    """Ask in the box with this id, and wait for the end of what is asked."""
    page.locator(f"#{box}").fill(question)
    page.locator(f"#{box}").press("Enter")
    page.wait_for_timeout(300)
    page.locator(f"#{box} + .send[aria-label=Send]").wait_for(timeout=ANSWER_MILLISECONDS)
    page.wait_for_timeout(500)


def save(picture: bytes, path: Path) -> None:
    """With 256 colours: a third of the size, and no eye tells the difference on a page of text."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(path, optimize=True)


def photograph(browser: Browser, client: str, out: Path, shot: str, names: list[str]) -> None:
    """All pictures of one theme and size."""
    suffix, width, height = SHOTS[shot]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if shot.endswith("-dark") else "light",
        device_scale_factor=1.25,
    )
    page.goto(client + SETTINGS)
    page.locator("#status .ready").wait_for(state="attached")
    page.wait_for_timeout(1000)
    if "start" in names:
        save(page.screenshot(), out / f"start{suffix}.png")
    for name, go in PAGES.items():
        go(page)
        if name in names:
            page.mouse.move(0, 0)
            save(page.screenshot(), out / f"{name}{suffix}.png")
            sys.stdout.write(f"{out / name}{suffix}.png\n")
    page.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Photograph every page of the web client.")
    parser.add_argument("--adapters", type=Path, default=ROOT / "adapters", help="the volume")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "screenshots")
    parser.add_argument(
        "--readme", action="store_true", help="the README's three only, to docs/images"
    )
    parser.add_argument("--only", nargs="+", choices=SHOTS, default=list(SHOTS))
    options = parser.parse_args()
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.stderr.write(f"No browser on PATH; looked for {', '.join(BROWSERS)}.\n")
        return 1
    if not options.adapters.is_dir():
        sys.stderr.write(f"No adapters in {options.adapters}; `make demo ONESHOT=1` trains one.\n")
        return 1
    shots, names, out = options.only, ["start", *PAGES], options.out
    if options.readme:
        shots, names, out = ["laptop"], list(README), ROOT / "docs" / "images"
    out.mkdir(parents=True, exist_ok=True)
    cache = Path(os.environ.get("LORACHAT_CACHE") or ROOT / ".cache")
    logs = ROOT / ".cache" / "logs"
    volume = ["--adapters", str(options.adapters)]
    server, client = (f"http://127.0.0.1:{free_port(0)}" for _ in range(2))
    serve = ["server", "--model", str(prepare(cache)), "--port", server.rpartition(":")[2], *volume]
    page = ["client", "ui", "--server", server, "--port", client.rpartition(":")[2], *volume]
    try:
        with ExitStack() as programs:
            started = programs.enter_context(Program(serve, logs / "server.log"))
            started.wait_until_up(f"{server}/ready", 120)
            shown = programs.enter_context(Program(page, logs / "client.log"))
            shown.wait_until_up(f"{client}/health", 60)
            playwright = programs.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=path, args=BROWSER_FLAGS)
            for shot in shots:
                photograph(browser, client, out, shot, names)
            browser.close()
    except DemoError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
