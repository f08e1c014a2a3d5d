"""`ChatClient` against a real server on a real socket: events, figures, errors, cancellation."""

import asyncio
import socket
from contextlib import aclosing, closing

import pytest

from client.api import ChatClient, normalise_address
from client.errors import ChatError, ErrorKind
from client.types import ChatRequest, Delta, Done, Message, Sampling, Standing, default_model
from client.ui.catalog import look
from tests.client.fake_server import (
    DONE,
    FakeServer,
    Script,
    answer,
    chunk,
    error,
    event,
    running,
    wait_until,
)

HELLO = answer(["Hel", "lo", " 🙂", "!"])
SPLIT = b"".join(answer(["naïve", " — 数", " \u2028\u0085", "🙂"]))

SCRIPTS = {
    "plain": Script(tuple(HELLO), pause_seconds=0.02),
    "bytewise": Script(tuple(SPLIT[i : i + 7] for i in range(0, len(SPLIT), 7)), 0.001),
    "commented": Script((b": keep-alive\n\n", HELLO[0], b": keep-alive\n\n", *HELLO[1:])),
    "long": Script(tuple(answer(["one"] * 5, "length"))),
    "no usage": Script((*HELLO[:-2], DONE)),
    "silent": Script(tuple(answer([""]))),
    "slow": Script((HELLO[0],), ending="hang"),
    "silent for ever": Script((), ending="hang"),
    "no done": Script(tuple(HELLO[:2])),
    "done too early": Script((HELLO[0], DONE)),
    "cut": Script(tuple(HELLO[:2]), 0.02, ending="cut"),
    "breaks": Script((HELLO[0], event(error("out of memory")))),
    "not json": Script((b"data: <html>\n\n",)),
    "not a chunk": Script((event([1, 2]),)),
    "not utf-8": Script((b"data: \xff\n\n",)),
    "refused": Script(status=400, body=error("temperature must be between 0 and 2")),
    "too long": Script(
        status=400,
        body=error(
            "This model's maximum context length is 2048 tokens. However, you sent 3000",
            code="context_length_exceeded",
        ),
    ),
    "busy": Script(status=429, body=error("queue full"), headers={"Retry-After": "7"}),
    "busy, undated": Script(status=429, body=error("queue full")),
    "loading": Script(status=503, body=error("the model is loading")),
    "failed": Script(status=500, body=error("engine step raised")),
    "proxied": Script(status=502, body="Bad Gateway"),
    "moved": Script(status=307, body="", headers={"Location": "http://127.0.0.1:9/"}),
}


@pytest.fixture(scope="module")
def server():
    with running(FakeServer(SCRIPTS)) as server:
        yield server


def ask(url, model, *, key=None, sampling=None, text="Hi"):
    """All events of one answer; on an error the events before it, and the error."""

    async def run():
        events = []
        async with ChatClient(url, key) as client:
            request = ChatRequest(model, (Message("user", text),), sampling or Sampling())
            try:
                async for item in client.stream(request):
                    events.append(item)  # noqa: PERF401 - those before an error count as well
            except ChatError as failure:
                return events, failure
        return events, None

    return asyncio.run(run())


def text_of(events):
    return "".join(e.text for e in events if isinstance(e, Delta))


def test_stream_gives_deltas_then_one_done_with_figures(server):
    events, failure = ask(server.url, "plain")
    assert failure is None
    assert [type(e) for e in events] == [Delta] * 4 + [Done]
    assert text_of(events) == "Hello 🙂!"
    done = events[-1]
    assert (done.finish_reason, done.model) == ("stop", "m")
    assert done.usage.prompt_tokens == 12
    assert done.usage.completion_tokens == 4
    assert done.usage.cached_tokens == 4
    timings = done.timings
    assert 0 < timings.first_token_seconds < timings.total_seconds
    # Three tokens follow the first, at least 20 ms apart each.
    assert 0 < timings.tokens_per_second <= 3 / 0.06 * 1.2


def test_deltas_come_while_the_server_is_still_writing(server):
    async def first():
        async with (
            ChatClient(server.url) as client,
            aclosing(client.stream(ChatRequest("slow", (Message("user", "Hi"),)))) as stream,
        ):
            return await asyncio.wait_for(anext(stream), 5)

    assert asyncio.run(first()) == Delta("Hel")


@pytest.mark.parametrize(
    ("model", "text"), [("bytewise", "naïve — 数 \u2028\u0085🙂"), ("commented", "Hello 🙂!")]
)
def test_text_survives_any_chunking(server, model, text):
    events, failure = ask(server.url, model)
    assert failure is None
    assert text_of(events) == text


def test_a_finished_answer_leaves_the_connection_whole():
    with running(FakeServer({"plain": SCRIPTS["plain"]})) as server:

        async def run():
            async with ChatClient(server.url) as client:
                for _ in range(2):
                    request = ChatRequest("plain", (Message("user", "Hi"),))
                    async with aclosing(client.stream(request)) as stream:
                        async for item in stream:
                            if isinstance(item, Done):
                                break
                return len(client._http._transport._pool.connections)

        assert asyncio.run(run()) == 1
        assert server.gone == []


def test_length_is_reported(server):
    assert ask(server.url, "long")[0][-1].finish_reason == "length"


def test_figures_that_cannot_be_known_are_none(server):
    done = ask(server.url, "no usage")[0][-1]
    assert done.usage is None
    assert done.timings.tokens_per_second is None
    events, _ = ask(server.url, "silent")
    assert [type(e) for e in events] == [Done]
    assert events[0].timings.first_token_seconds is None


def test_request_carries_conversation_and_settings(server):
    server.requests.clear()
    sampling = Sampling(temperature=0.0, top_p=0.5, max_tokens=9)
    ask(server.url, "plain", sampling=sampling, text="数 “quoted”")
    (body,) = server.requests
    assert body == {
        "model": "plain",
        "messages": [{"role": "user", "content": "数 “quoted”"}],
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("nobody", ErrorKind.UNKNOWN_MODEL, "no model named “nobody”"),
        ("refused", ErrorKind.REFUSED, "temperature must be between 0 and 2."),
        ("too long", ErrorKind.REFUSED, "That is 952 too many: start a new conversation"),
        ("busy", ErrorKind.BUSY, "Try again in 7 s."),
        ("busy, undated", ErrorKind.BUSY, "Try again in a moment."),
        ("loading", ErrorKind.LOADING, "the model is loading."),
        ("failed", ErrorKind.FAILED, "engine step raised."),
        ("proxied", ErrorKind.FAILED, "The server failed (502)"),
        ("moved", ErrorKind.NOT_A_SERVER, "not a chat server"),
        ("not json", ErrorKind.NOT_A_SERVER, "not a chat server"),
        ("not a chunk", ErrorKind.NOT_A_SERVER, "not a chat server"),
        ("not utf-8", ErrorKind.NOT_A_SERVER, "not a chat server"),
    ],
)
def test_refusals_are_sentences_and_never_repeated(server, model, kind, words):
    server.requests.clear()
    events, failure = ask(server.url, model)
    assert events == []
    assert failure.kind is kind
    assert words in str(failure)
    assert failure.sentence.endswith(".")
    assert failure.next_step.endswith(".")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("model", "kind", "words", "text"),
    [
        ("breaks", ErrorKind.FAILED, "out of memory.", "Hel"),
        ("no done", ErrorKind.BROKEN, "ended before the answer did", "Hello"),
        ("done too early", ErrorKind.BROKEN, "ended before the answer did", "Hel"),
        ("cut", ErrorKind.BROKEN, "ended before the answer did", "Hello"),
    ],
)
def test_a_stream_that_breaks_keeps_its_text_and_says_so(server, model, kind, words, text):
    events, failure = ask(server.url, model)
    assert text_of(events) == text
    assert failure.kind is kind
    assert words in str(failure)
    assert not any(isinstance(e, Done) for e in events)


def test_retry_after_is_kept(server):
    assert ask(server.url, "busy")[1].retry_after_seconds == 7


def test_a_silent_server_is_given_up(server, monkeypatch):
    import httpx

    monkeypatch.setattr("client.api._TIMEOUT", httpx.Timeout(0.3))
    failure = ask(server.url, "silent for ever")[1]
    assert failure.kind is ErrorKind.BROKEN
    assert "silent for too long" in failure.sentence


def test_nobody_at_the_address():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        failure = ask(url, "plain")[1]
    assert failure.kind is ErrorKind.AWAY
    assert url in failure.sentence
    assert "LORACHAT_SERVER" in failure.next_step


@pytest.mark.parametrize("way", ["aclose", "cancel"])
def test_going_away_reaches_the_server(way):
    with running(FakeServer({"slow": SCRIPTS["slow"]})) as server:

        async def leave():
            async with ChatClient(server.url) as client:
                stream = client.stream(ChatRequest("slow", (Message("user", "Hi"),)))
                await anext(stream)
                if way == "aclose":
                    await stream.aclose()
                else:
                    reader = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0.05)
                    reader.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await reader
                # The client itself stays open: the one connection must go, not all of them.
                await asyncio.to_thread(wait_until, lambda: server.gone, "the server to notice")

        asyncio.run(leave())
        assert server.gone == ["slow"]


def test_the_key_is_sent_and_a_wrong_one_is_told():
    with running(FakeServer({"plain": SCRIPTS["plain"]}, key="s3cret")) as server:
        assert ask(server.url, "plain", key="s3cret\n")[1] is None
        assert server.headers[-1]["authorization"] == "Bearer s3cret"
        without = ask(server.url, "plain")[1]
        wrong = ask(server.url, "plain", key="other")[1]
    assert "authorization" not in server.headers[1]
    assert without.kind is wrong.kind is ErrorKind.UNAUTHORIZED
    assert "asks for an API key" in without.sentence
    assert "does not accept this API key" in wrong.sentence
    assert "LORACHAT_API_KEY" in wrong.next_step
    assert "other" not in str(wrong)


def test_a_key_that_cannot_be_sent_is_refused_at_once():
    with pytest.raises(ValueError, match="API key"):
        ChatClient("http://127.0.0.1:8000", "clé")


def test_models_and_the_default_choice(server):
    async def run():
        async with ChatClient(server.url) as client:
            await client.check_ready()
            return await client.models()

    models = asyncio.run(run())
    assert [m.id for m in models][:2] == ["base", "smalltalk"]
    assert [m.is_pinned for m in models] == [False, False, True, True]
    assert models[0].label == "base · SmolLM2-135M-Instruct"
    assert models[1].label == "smalltalk · latest, 20261123-081642-3fa9c1"
    assert models[2].label == "smalltalk@20261123-081642-3fa9c1"
    assert default_model(models) == "smalltalk"
    assert default_model(models[:1]) == "base"
    assert default_model([]) is None


def test_a_server_of_another_make_needs_no_route_for_readiness():
    """vLLM has none; it listens when it has loaded."""
    server = FakeServer({}, is_ready=None)

    async def check():
        async with ChatClient(server.url) as client:
            return await look(client)

    with running(server):
        catalog = asyncio.run(check())
    assert catalog.error is None
    assert catalog.models[0].id == "base"


def test_readiness_tells_loading_from_away():
    server = FakeServer({}, is_ready=False)

    async def check():
        async with ChatClient(server.url) as client:
            await client.check_ready()

    with running(server), pytest.raises(ChatError) as loading:
        asyncio.run(check())
    assert loading.value.kind is ErrorKind.LOADING
    with pytest.raises(ChatError) as away:
        asyncio.run(check())
    assert away.value.kind is ErrorKind.AWAY


def test_not_a_model_list(server):
    async def run():
        async with ChatClient(f"{server.url}/elsewhere") as client:
            await client.models()

    with pytest.raises(ChatError) as failure:
        asyncio.run(run())
    assert failure.value.kind is ErrorKind.NOT_A_SERVER


def test_a_proxy_from_the_environment_is_not_asked_for_loopback(server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert ask(server.url, "plain")[1] is None


def test_addresses():
    assert normalise_address(" http://host:8000/v1/ ") == "http://host:8000"
    assert normalise_address("https://host/prefix/") == "https://host/prefix"
    for wrong in ("host:8000", "ftp://host", "", "http://"):
        with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8000"):
            normalise_address(wrong)


def test_only_the_text_of_the_first_choice_counts():
    parts = (
        event(chunk(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])),
        event(chunk(choices=[{"index": 1, "delta": {"content": "other"}}])),
        *answer(["mine"]),
    )
    with running(FakeServer({"two": Script(parts)})) as other:
        events, failure = ask(other.url, "two")
    assert failure is None
    assert text_of(events) == "mine"


def test_an_operator_is_told_how_versions_fare_and_others_are_not():
    async def ask(server):
        async with ChatClient(server.url) as client:
            return await client.standings()

    with running(FakeServer(SCRIPTS)) as server:
        assert asyncio.run(ask(server)) is None
        server.standings = [
            {"id": "s@1", "state": "refused", "reason": "damaged"},
            {"id": "s@2", "state": "loaded", "reason": None},
        ]
        assert asyncio.run(ask(server)) == {
            "s@1": Standing("s@1", "refused", "damaged"),
            "s@2": Standing("s@2", "loaded"),
        }
        server.standings = [{"no": "id"}]
        with pytest.raises(ChatError) as caught:
            asyncio.run(ask(server))
        assert caught.value.kind is ErrorKind.NOT_A_SERVER
