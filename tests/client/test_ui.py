"""The parts of the web client that need no browser: snapshots, transcripts, notes, pickers."""

import asyncio
import time
from contextlib import aclosing

import httpx
import pytest
from client.ui.answers import Answer, watch
from client.ui.switches import StopSwitches
from client.ui.transcript import answer_entry, messages, note, up_to_question, user_entry

from client.api import ChatClient
from client.errors import ChatError, ErrorKind
from client.types import ChatRequest, Done, Message, Model, Timings, Usage
from client.ui.catalog import Catalog, look
from tests.client.fake_server import FakeServer, Script, answer, error, running, wait_until

SCRIPTS = {
    "quick": Script(tuple(answer(["Hello", " there"]))),
    "slow": Script(tuple(answer(["word "] * 10)), 0.05),
    "endless": Script(tuple(answer(["word "] * 500)), 0.05),
    "busy": Script(status=429, body=error("full")),
}
DONE = Done("stop", "m", Usage(12, 8, 4), Timings(0.5, 2.0, 4.66))
FAILURE = ChatError(ErrorKind.AWAY, "Nobody *is* <there>.", "Wait.")


@pytest.fixture(scope="module")
def server():
    with running(FakeServer(SCRIPTS)) as server:
        yield server


def request(model):
    return ChatRequest(model, (Message("user", "Hi"),))


def snapshots_of(server, models, stop_after=None):
    async def run():
        stop = asyncio.Event()
        seen = []
        async with (
            ChatClient(server.url) as client,
            aclosing(watch(client, [request(m) for m in models], stop)) as snapshots,
        ):
            async for snapshot in snapshots:
                seen.append(snapshot)
                if stop_after is not None and snapshot[0].text.count("word") >= stop_after:
                    stop.set()
        return seen

    return asyncio.run(run())


def test_two_answers_are_written_at_once_and_one_failure_spares_the_other(server):
    started = time.perf_counter()
    seen = snapshots_of(server, ["slow", "busy", "slow"])
    assert time.perf_counter() - started < 2 * 10 * 0.05 + 1.0
    first, failed, third = seen[-1]
    assert first.text == third.text == "word " * 10
    assert first.done.finish_reason == third.done.finish_reason == "stop"
    assert failed.error.kind is ErrorKind.BUSY
    assert any(s[1].has_ended and s[0].text and not s[0].has_ended for s in seen)
    assert all(a.has_ended for a in seen[-1])
    assert len(seen) >= 4


def test_the_last_snapshot_is_complete_however_quick_the_answer(server):
    assert snapshots_of(server, ["quick"])[-1][0].text == "Hello there"


def test_a_stopped_answer_keeps_its_text_and_says_so(server):
    server.gone.clear()
    (last,) = snapshots_of(server, ["endless"], stop_after=3)[-1]
    assert last.is_stopped
    assert last.text.count("word") >= 3
    assert last.done is last.error is None
    wait_until(lambda: server.gone == ["endless"], "the server to notice")


def test_leaving_the_snapshots_stops_the_server(server):
    server.gone.clear()

    async def leave():
        async with ChatClient(server.url) as client:
            async with aclosing(watch(client, [request("endless")], asyncio.Event())) as snapshots:
                async for (snapshot,) in snapshots:
                    if snapshot.text:
                        break
            await asyncio.to_thread(
                wait_until, lambda: server.gone == ["endless"], "the server to notice"
            )

    asyncio.run(leave())


def test_stopping_waits_until_the_answer_has_ended():
    async def run():
        switches, order = StopSwitches(), []

        async def write():
            with switches.running(("page", "chat")) as switch:
                await switch.wait()
                await asyncio.sleep(0.05)
                order.append("ended")

        writer = asyncio.create_task(write())
        await asyncio.sleep(0.01)
        await switches.stop(("another page", "chat"))
        assert not order
        await switches.stop(("page", "chat"))
        order.append("stopped")
        await writer
        await switches.stop(("page", "chat"))  # nothing runs any more
        return order

    assert asyncio.run(run()) == ["ended", "stopped"]


def test_what_the_server_is_told_leaves_out_notes_and_unanswered_questions():
    history = [
        user_entry("One"),
        answer_entry(Answer("m", "First.\n", done=DONE)),
        user_entry("Lost"),
        answer_entry(Answer("m", error=FAILURE)),
        user_entry("Two"),
        answer_entry(Answer("m", "Half", is_stopped=True)),
        user_entry("Three"),
    ]
    assert [(m.role, m.content) for m in messages(history, "Be kind.")] == [
        ("system", "Be kind."),
        ("user", "One"),
        ("assistant", "First.\n"),
        ("user", "Two"),
        ("assistant", "Half"),
        ("user", "Three"),
    ]
    assert messages(history, "  ")[0].role == "user"
    assert up_to_question(history) == history
    assert up_to_question(history, 5) == history[:5]
    assert up_to_question(history, 2) == history[:3]
    assert up_to_question([]) == []


def test_white_space_of_an_answer_survives_gradio():
    import gradio as gr

    text = "    indented\n\n  trailing \n"
    chatbot = gr.Chatbot()
    sent = chatbot.postprocess([answer_entry(Answer("m", text))])
    back = chatbot.preprocess(sent)
    assert back[0]["content"][0]["text"] == text


def test_notes():
    assert note(Answer("m", "x", done=DONE)) == (
        "m · first token 500 ms · 4.7 tokens/s · 12 tokens in (4 cached), 8 out · finished"
    )
    assert note(Answer("a_b", seconds=3.2)) == r"a\_b · waiting for the first token, 3 s"
    assert note(Answer("m", "x", seconds=12.3)) == "m · writing, 12 s"
    assert note(Answer("m", "x", seconds=2.25, is_stopped=True)) == "m · stopped after 2.2 s"
    assert note(Answer("m", error=FAILURE)) == r"> **Nobody \*is\* \<there\>.** Wait."


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
    from client.ui.web import create_app

    app = create_app("http://127.0.0.1:9")

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
