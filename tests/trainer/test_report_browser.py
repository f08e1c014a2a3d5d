"""Report and plan in a real browser: nothing fetched, nothing cut off, readable in both colour schemes, by anybody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from run_records import run_record, source

from trainer.estimate import PEAKS, MemoryParts
from trainer.recipe_file import load_recipe
from trainer.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    long_word = "a" * 300
    run = run_record(
        sources=(source("finetome"), source("evol-instruct", location=long_word)),
        command=f"python -m trainer train --set {long_word}",
        warnings=(long_word,),
        recipe={long_word: long_word},
    )
    write_report(run, folder)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def plan_address(tmp_path_factory: pytest.TempPathFactory) -> str:
    from trainer.plan import Plan
    from trainer.report.plan_page import write_plan

    recipe = load_recipe("llama-3.2-3b", [f"data.sources.0.location={'a' * 300}/b"])
    parts = MemoryParts(2.38, 0.19, 0.05, 1.2, 0.7, 3.4)
    seconds = {card: (3000.0 / peak * 65e12, 700.0) for card, peak in PEAKS.items()}
    plan = Plan(
        3_212_749_824, 24_313_856, 27_452, 1_440, 12_408_236, 16, 7_190.0, 1.61, 0.02, 2.1, parts, parts,
        12.85, 9.4, seconds, ("a" * 300, *recipe.advice()),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("plan") / "plan.html"
    write_plan(recipe, plan, path)
    return path.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("which", "graphs"), [("address", 5), ("plan_address", 0)])
def test_it_is_accessible_and_fits_the_screen(
    which: str,
    graphs: int,
    scheme: str,
    width: int,
    browser: Browser,
    request: pytest.FixtureRequest,
) -> None:
    address = request.getfixturevalue(which)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # The page's own policy forbids every script, the checker's included.
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    fetched: list[str] = []
    page.on("request", lambda request: fetched.append(request.url))
    page.goto(address)
    page.evaluate(
        "document.querySelectorAll('details').forEach(details => { details.open = true })"
    )

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert sizes == [1040] * graphs
    results = axe.run(page)
    assert results.violations_count == 0, results.generate_report()
    assert len(results.response["passes"]) > 15
    assert [url for url in fetched if not url.startswith("data:")] == [address]
    context.close()


def test_the_dark_scheme_has_its_own_graphs(browser: Browser, address: str) -> None:
    shown = []
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(address)
        shown.append(
            page.eval_on_selector_all("img", "images => images.map(image => image.currentSrc)")
        )
        context.close()

    assert all(light != dark for light, dark in zip(*shown, strict=True))
