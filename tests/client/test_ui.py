"""The parts of the web client that need no browser: snapshots, Markdown, pickers, rows, routes."""

import asyncio
import itertools
import json
import re
from contextlib import aclosing
from html import unescape

import anyio
import httpx
import pytest

from client.answers import Answer, watch
from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.types import ChatRequest, Done, Message, Model, Standing, Timings, Usage
from client.ui.answer_lines import answer_lines
from client.ui.catalog import Catalog, look
from client.ui.differences import differences
from client.ui.markdown import to_html
from client.ui.panels import adapter_rows
from client.ui.prompts import DEFAULT, prompt_set
from client.volume import Version
from tests.client.fake_server import FakeServer, Script, answer, error, running, wait_until

LONG = ["# Title\n\n", "One.\n\n", "```py\n", "x = 1\n\n", "y\n```\n\n", "- a\n", "- b\n\n", "End"]
SCRIPTS = {
    "quick": Script(tuple(answer(["Hello", " there"]))),
    "slow": Script(tuple(answer(["word "] * 10)), 0.05),
    "endless": Script(tuple(answer(["word "] * 500)), 0.05),
    "long": Script(tuple(answer(LONG)), 0.08),
    "busy": Script(status=429, body=error("full"), headers={"Retry-After": "2"}),
}


@pytest.fixture(scope="module")
def server():
    with running(FakeServer(SCRIPTS)) as server:
        yield server


def request(model):
    return ChatRequest(model, (Message("user", "Hi"),))


def snapshots_of(server, model):
    async def run():
        async with (
            ChatClient(server.url) as client,
            aclosing(watch(client, request(model))) as snapshots,
        ):
            return [snapshot async for snapshot in snapshots]

    return asyncio.run(run())


def test_an_answer_is_seen_growing_and_its_last_snapshot_is_complete(server):
    seen = snapshots_of(server, "slow")
    assert len(seen) >= 4
    assert all(b.text.startswith(a.text) for a, b in itertools.pairwise(seen))
    assert seen[-1].text == "word " * 10
    assert seen[-1].done.finish_reason == "stop"
    assert not any(snapshot.has_ended for snapshot in seen[:-1])
    assert snapshots_of(server, "quick")[-1].text == "Hello there"
    assert snapshots_of(server, "busy")[-1].error.kind is ErrorKind.BUSY


@pytest.mark.parametrize("how", ["break", "cancel", "cancel scope"])
def test_leaving_an_answer_stops_the_server(server, how):
    """A cancel scope, as Starlette has one around each response, cancels again and again."""
    server.gone.clear()

    async def read(client):
        async with aclosing(watch(client, request("endless"))) as snapshots:
            async for snapshot in snapshots:
                if snapshot.text and how == "break":
                    return

    async def leave():
        async with ChatClient(server.url) as client:
            if how == "break":
                await read(client)
            elif how == "cancel":
                reader = asyncio.create_task(read(client))
                await asyncio.sleep(0.3)
                reader.cancel()
                await asyncio.wait([reader])
            else:
                with anyio.move_on_after(0.3):
                    await read(client)
            await asyncio.to_thread(
                wait_until, lambda: server.gone == ["endless"], "the server to notice"
            )

    asyncio.run(leave())


def lines_of(server, model):
    async def run():
        async with ChatClient(server.url) as client:
            lines = answer_lines(client, request(model))
            return [json.loads(line) async for line in lines]

    return asyncio.run(run())


def test_what_the_page_draws_piece_by_piece_is_the_whole_answer(server):
    *lines, last = lines_of(server, "long")
    assert "".join(line["text"] for line in [*lines, last]) == "".join(LONG)
    settled = "".join(line["settled"] for line in lines)
    assert "<h1>Title</h1>" in settled
    assert settled.count("<figure") == 1  # not cut at the blank line inside the code
    assert last["html"].startswith(settled)
    assert last["end"]["finish_reason"] == "stop"
    assert last["end"]["cached_tokens"] == 4
    (failed,) = [line for line in lines_of(server, "busy") if "end" in line]
    assert failed["end"]["error"]["retry_after_seconds"] == 2
    assert failed["note"] == []


def test_notes():
    done = Done("stop", "a@1", Usage(12, 8, 4), Timings(0.5, 2.0, 4.66))
    assert " · ".join(Answer("a", "x", done=done).note) == (
        "a@1 · first token 500 ms · 4.7 tokens/s · 12 tokens in (4 cached), 8 out · finished"
    )
    assert Answer("m", seconds=3.2).note == ["m", "waiting for the first token, 3 s"]
    assert Answer("m", "x", seconds=12.3).note == ["m", "writing, 12 s"]


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "![x](http://192.0.2.1/)",
        "`<b>`",
        "```<b>\n<b>\n```",
        "    <b>",
        '[x](http://a/"onmouseover=alert(1))',
        "<http://a/<b>>",
    ],
)
def test_an_answer_is_shown_and_cannot_act(text):
    html = to_html(text)
    for forbidden in (
        "<script",
        "<img",
        "<b>",
        'href="javascript',
        '"onmouseover',
        "onerror=alert(1)>",
    ):
        assert forbidden not in html.replace("onerror=alert(1)&gt;", "")


def test_html_that_is_asked_for_is_shown_as_code_with_its_indentation():
    html = to_html('Here:\n\n<div class="x">\n  <p>Hi</p>\n</div>\n\n<think>\n**So**\n</think>')
    code, _, after = html.partition("</figure>")
    assert "<span>html</span>" in code
    shown = unescape(re.sub("<[^>]*>", "", code.partition("<code>")[2]))
    assert shown == '<div class="x">\n  <p>Hi</p>\n</div>\n'
    assert "&lt;think&gt;" in after  # no element of HTML: what is within is Markdown
    assert "<strong>So</strong>" in after


def test_differences_mark_what_is_not_shared_and_escape_the_rest():
    left, right, common = differences("the <b> cat sat", "the <b> dog sat down")
    assert left == "the &lt;b&gt; <del>cat</del> sat"
    assert right == "the &lt;b&gt; <ins>dog</ins> sat<ins> down</ins>"
    assert 0.7 < common < 0.95
    with pytest.raises(ValueError, match="too long"):
        differences("word " * 5000, "")


def test_rows_say_why_a_version_is_not_served():
    new, old, odd = (f"2026112{n}-000000-aaaaaa" for n in (3, 2, 1))
    root = f"s@{new}"
    catalog = Catalog(
        models=(
            Model("base", "org/tiny", None, 64),
            Model("s", root, "base", 64),
            Model(root, root, "base", 64, "sha256:1"),
            Model("elsewhere@1", "elsewhere@1", "base", 64),
        )
    )
    versions = [
        Version("s", new, True, base="tiny"),
        Version("s", old, False, base="other"),
        Version("s", odd, False, problem="damaged"),
    ]
    rows = adapter_rows(catalog, versions)
    assert [(row.version.id, row.state) for row in rows] == [
        ("elsewhere@1", "served"), (root, "served"), (f"s@{old}", "refused"), (f"s@{odd}", "broken"),
    ]  # fmt: skip
    assert (rows[1].words, rows[1].digest) == ("served · latest", "sha256:1")
    assert "trained for other; the server's base is org/tiny" in rows[2].reason
    assert rows[3].reason == "damaged"
    standings = {
        root: Standing(root, "pinned"),
        f"s@{old}": Standing(f"s@{old}", "refused", "its base is another one"),
        "gone@1": Standing("gone@1", "draining"),
    }
    told = {row.version.id: row for row in adapter_rows(catalog, versions, standings)}
    assert told[root].words == "served · latest · pinned in memory"
    assert (told[f"s@{old}"].words, told[f"s@{old}"].reason) == (
        "refused",
        "Its base is another one",
    )
    assert "answers that began with it go on" in told["gone@1"].reason
    away = Catalog(error=ChatError(ErrorKind.AWAY, "Away.", "Wait."))
    assert {row.state for row in adapter_rows(away, versions)} == {"unknown", "broken"}


def test_the_prompt_set_is_that_of_the_models_report():
    versions = [
        Version("s", "2", True, prompts=("two",)),
        Version("s", "1", False, prompts=("one",)),
    ]
    assert prompt_set(versions, "s") == ("the training report of s@2", ("two",))
    assert prompt_set(versions, "s@1")[1] == ("one",)
    assert prompt_set(versions, "base")[1] == DEFAULT


def test_a_look_at_the_server_never_raises():
    server = FakeServer(SCRIPTS)

    async def once():
        async with ChatClient(server.url) as client:
            return await look(client)

    with running(server):
        catalog = asyncio.run(once())
        server.is_ready = False
        loading = asyncio.run(once())
    away = asyncio.run(once())
    assert [choice[1] for choice in catalog.choices][:2] == ["base", "smalltalk"]
    assert catalog.keep("smalltalk", "base") == "smalltalk"
    assert catalog.keep("removed", "base") == "base"
    assert loading.is_loading
    assert not away.is_loading
    assert away.why_no_model.kind is ErrorKind.AWAY
    assert "Pick one" in str(Catalog(models=(Model("m", "m", None, None),)).why_no_model)


def test_the_application_is_healthy_strict_and_private():
    from client.ui.web import Options, create_app

    app = create_app(Options("http://127.0.0.1:9"))

    async def get(path):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path)

    health = asyncio.run(get("/health"))
    assert health.json() == {"status": "ok"}
    assert "default-src 'self'" in health.headers["content-security-policy"]
    page = asyncio.run(get("/"))
    assert page.status_code == 200
    assert "lorachat" in page.text
    assert "fonts.googleapis.com" not in page.text
    named = asyncio.run(get("/gradio_api/info")).json()["named_endpoints"]
    assert named == {}  # no handler of the page is an API


def test_the_pages_own_routes_refuse_what_they_cannot_use(tmp_path):
    from client.ui.web import Options, create_app

    (tmp_path / "secret.html").write_text("secret")
    (tmp_path / "s" / "20261123-000000-aaaaaa" / "report").mkdir(parents=True)
    report = tmp_path / "s" / "20261123-000000-aaaaaa" / "report" / "report.html"
    report.symlink_to(tmp_path / "secret.html")
    app = create_app(Options("http://127.0.0.1:9", adapters=tmp_path))

    async def ask(method, path, **body):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/lorachat") as http:
            return await http.request(method, path, **body)

    def status(*arguments, **body):
        return asyncio.run(ask(*arguments, **body)).status_code

    assert status("GET", "/reports/s/20261123-000000-aaaaaa") == 404  # leads out of the version
    assert status("GET", "/reports/..%2f..%2fetc/passwd") == 404
    assert status("POST", "/html", json={"texts": ["x"], "more": 1}) == 422
    # What another site's form could send without being asked first.
    form = {"content": b'{"texts": ["x"]}', "headers": {"Content-Type": "text/plain"}}
    assert status("POST", "/html", **form) == 422
    answer = asyncio.run(
        ask("POST", "/answers", json={
            "model": "m", "messages": [],
            "sampling": {"temperature": 1, "top_p": 1, "max_tokens": 1},
        }, headers={"X-Lorachat-Key": "clé".encode()})
    )  # fmt: skip
    assert "characters that no key can have" in answer.text
