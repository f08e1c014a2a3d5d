"""Compare, Adapters and Status in a real headless browser, against a scripted server."""

import csv
import json
import re

import httpx
import pytest
from playwright.sync_api import expect

from tests.client.conftest import METRICS, SCRIPTS
from tests.client.fake_server import FakeServer, running
from tests.client.pages import ask, bot, pick, problem, send_button, tab, web_client
from tests.client.volume import write_version

pytestmark = pytest.mark.browser

REPORT = """<style>h1 { color: rgb(1, 1, 1) }
@media (prefers-color-scheme: dark) { h1 { color: rgb(2, 2, 2) } }</style>
<h1>The report</h1><script>1</script>"""
NEW, OLD, ODD = "20261123-081642-3fa9c1", "20261120-174501-77d0ee", "20261119-000000-000000"


def test_compare_asks_both_at_once_marks_differences_and_records_a_vote(
    open_page, address, server, votes
):
    page = open_page(address)
    tab(page, "Compare")
    before = len(server.requests)
    ask(page, "My computer is dead", "compare-question")
    left, right = bot(page, "#left"), bot(page, "#right")
    # The fast one is done while the slow one is still writing.
    expect(right[1]).to_contain_text("finished")
    assert "writing" in left[1].inner_text()
    expect(left[1]).to_contain_text("finished")
    expect(left[0]).to_contain_text("word11")
    expect(right[0]).to_have_text(re.compile(r"Check the power cable\."))
    assert {request["model"] for request in server.requests[before:]} == {"base", "smalltalk"}

    page.get_by_role("button", name="Show differences").click()
    expect(left[0].locator("del").first).to_contain_text("word0")
    expect(right[0].locator("ins").first).to_contain_text("Check")
    page.get_by_role("button", name="Hide differences").click()
    expect(right[0].locator("strong")).to_have_text("power")

    page.get_by_role("button", name="Right is better").click()
    expect(page.locator(".judge")).to_contain_text(f"written to {votes}")
    (vote,) = [json.loads(line) for line in votes.read_text().splitlines()]
    assert vote["prompt"] == [{"role": "user", "content": "My computer is dead"}]
    assert vote["chosen"] == [{"role": "assistant", "content": "Check the **power** cable."}]
    assert vote["rejected"][0]["content"].startswith("word0 word1")
    assert vote["verdict"] == "right"
    assert vote["sampling"]["temperature"] == 0.7

    pick(page, "right-model", "busy")
    ask(page, "And then?", "compare-question")
    expect(problem(page, "#right")).to_contain_text("The server is busy")
    expect(bot(page, "#left")[1]).to_contain_text("finished")
    expect(page.get_by_role("button", name="A tie")).to_have_count(0)
    page.get_by_role("button", name="Clear both").click()
    expect(page.locator("lora-compare .turn")).to_have_count(0)


def test_a_comparison_can_be_stopped_and_voted_a_tie(open_page, address, votes):
    page = open_page(address)
    tab(page, "Compare")
    pick(page, "left-model", "endless")
    pick(page, "right-model", "endless")
    ask(page, "Go on", "compare-question")
    for side in ("#left", "#right"):
        expect(bot(page, side)[0]).to_contain_text("more more")
    send_button(page, "Stop", "compare-question").click()
    for side in ("#left", "#right"):
        expect(bot(page, side)[1]).to_contain_text("stopped after")
    page.get_by_role("button", name="A tie").click()
    expect(page.locator(".judge")).to_contain_text("A tie: written to")
    last = json.loads(votes.read_text().splitlines()[-1])
    assert (last["verdict"], last["chosen"], last["rejected"]) == ("tie", None, None)


def test_a_vote_that_cannot_be_written_says_what_to_do(open_page, watched, server, tmp_path):
    (tmp_path / "file").touch()
    with web_client(server.url, "--votes", str(tmp_path / "file" / "votes.jsonl")) as own:
        page = open_page(own)
        tab(page, "Compare")
        pick(page, "left-model", "smalltalk")
        ask(page, "Hi", "compare-question")
        page.get_by_role("button", name="Both are bad").click()
        expect(page.locator(".notice")).to_contain_text("Start the client with --votes")
        expect(page.get_by_role("button", name="Both are bad")).to_be_visible()
        # The browser's own line about the response.
        page.close()  # before the client goes, or the page would complain
        assert all("status of 507" in line for line in watched.logged), watched.logged
        watched.logged.clear()


def test_the_reports_prompts_as_a_batch_and_its_exports(open_page, server, tmp_path):
    volume = tmp_path / "adapters"
    write_version(volume, "smalltalk", NEW, prompts=["One, two", "=three"], latest=True)
    with web_client(server.url, "--adapters", str(volume)) as own:
        page = open_page(own)
        tab(page, "Compare")
        page.get_by_role("button", name="Prompt set").click()
        expect(page.locator("#prompts")).to_have_value("One, two\n=three")
        expect(page.get_by_text(f"From the training report of smalltalk@{NEW}.")).to_be_visible()
        before = len(server.requests)
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_text("2 prompts answered.")).to_be_visible()
        asked = server.requests[before:]
        assert len(asked) == 4
        assert {request["temperature"] for request in asked} == {0}
        expect(page.locator(".results tbody tr")).to_have_count(2)
        texts = {}
        for form in ("CSV", "JSON", "Markdown"):
            with page.expect_download() as download:
                page.get_by_role("button", name=form, exact=True).click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            texts[form] = path.read_text("utf-8")
        rows = list(csv.DictReader(texts["CSV"].splitlines()))
        assert [row["prompt"] for row in rows] == ["One, two", "'=three"]  # no formula
        assert rows[0]["right"] == "Check the **power** cable."
        assert [row["prompt"] for row in json.loads(texts["JSON"])] == ["One, two", "=three"]
        assert texts["Markdown"].count("Check the **power** cable.") == 2

        page.locator("#prompts").fill("Mine")
        page.get_by_label("Greedy").uncheck()
        page.get_by_role("button", name="Run").click()
        expect(page.get_by_text("1 prompts answered.")).to_be_visible()
        assert server.requests[-1]["temperature"] == 0.7
        page.get_by_role("button", name="Fill in the report's prompts").click()
        expect(page.locator("#prompts")).to_have_value("One, two\n=three")
        page.close()


def test_adapters_joins_what_is_served_with_what_lies_on_the_volume(open_page, watched, tmp_path):
    volume = tmp_path / "adapters"
    write_version(volume, "smalltalk", NEW, latest=True, report=REPORT)
    write_version(volume, "smalltalk", OLD, base="another/base")
    write_version(volume, "smalltalk", ODD)
    (volume / "smalltalk" / ODD / "manifest.json").write_text("{")
    root = f"smalltalk@{NEW}"
    models = [("base", "tiny", None), ("smalltalk", root, "base"), (root, root, "base")]
    with (
        running(FakeServer(SCRIPTS, models=models)) as own,
        web_client(own.url, "--adapters", str(volume)) as own_address,
    ):
        page = open_page(own_address)
        tab(page, "Adapters")
        rows = page.locator(".version")
        expect(rows).to_have_count(3)
        expect(rows.nth(0)).to_contain_text("served · latest")
        expect(rows.nth(0)).to_contain_text("2.500 → 2.000 −20 %")
        expect(rows.nth(1)).to_contain_text("not served")
        expect(rows.nth(2)).to_contain_text("unreadable")
        rows.nth(1).locator("summary").click()
        expect(rows.nth(1)).to_contain_text(
            "It was trained for another/base; the server's base is tiny."
        )
        rows.nth(2).locator("summary").click()
        expect(rows.nth(2)).to_contain_text("Publish the version again.")
        rows.nth(0).locator("summary").click()
        expect(rows.nth(0)).to_contain_text("help-desk, small-talk")
        frame = page.frame_locator(f"iframe[title='Training report of {root}']")
        expect(frame.get_by_role("heading", name="The report")).to_be_visible()
        heading = frame.get_by_role("heading", name="The report")
        expect(heading).to_have_css("color", "rgb(1, 1, 1)")
        page.locator("#theme").click()  # not the system's theme: the page's
        expect(heading).to_have_css("color", "rgb(2, 2, 2)")
        # Another look at the page leaves open what was open.
        tab(page, "Chat")
        tab(page, "Adapters")
        expect(frame.get_by_role("heading", name="The report")).to_be_visible()
        page.close()
        # A report cannot run anything: the browser says that it refused.
        assert all("script" in line for line in watched.logged), watched.logged
        watched.logged.clear()


def test_status_shows_the_metrics_and_follows_them(open_page, address, server):
    page = open_page(address)
    tab(page, "Status")
    figures = page.locator(".figures > div")

    def figure(name):
        return figures.filter(has=page.get_by_text(name, exact=True)).locator("dd")

    expect(page.get_by_role("heading", name="The server is ready.")).to_be_visible()
    for name, value in [
        ("Running", "3"), ("Waiting", "4"), ("Prefix cache hits", "75 %"), ("KV cache in use", "25 %"),
        ("Memory", "1.50 GB"), ("Time to first token", "500 ms"), ("Tokens written", "5,000"),
    ]:  # fmt: skip
        expect(figure(name)).to_contain_text(value)
    server.metrics = METRICS.replace("waiting 4", "waiting 9").replace(" 5000", " 6000")
    try:
        expect(figure("Waiting")).to_contain_text("9")
        expect(figure("Tokens written")).to_contain_text("6,000")
        expect(figure("Tokens/s now")).not_to_contain_text(re.compile(r"^(–|0\.0)"))
        server.metrics = None
        expect(page.get_by_text("This server has no metrics")).to_be_visible()
        server.is_ready = False
        expect(page.get_by_role("heading", name=re.compile("not ready"))).to_be_visible()
    finally:
        server.metrics, server.is_ready = METRICS, True
    expect(figure("Waiting")).to_contain_text("4")


def test_a_login_is_asked_for(browser, server):
    with web_client(server.url, "--login", "ada:love") as own:
        assert httpx.get(own).status_code == 401
        assert httpx.get(f"{own}/lorachat/prompts", auth=("ada", "wrong")).status_code == 401
        assert httpx.get(f"{own}/health").status_code == 200
        context = browser.new_context(http_credentials={"username": "ada", "password": "love"})
        page = context.new_page()
        page.goto(own)
        expect(page.locator("#status")).to_contain_text("Ready")
        pick(page, "chat-model", "smalltalk")
        ask(page, "Hi")
        expect(bot(page)[1]).to_contain_text("finished")
        context.close()
