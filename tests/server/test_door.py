"""What is checked before a request is believed: pages of browsers, heads, bodies, times, and the limits of fields."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest

from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running, until


def address(server: Running) -> tuple[str, int]:
    url = server.http.base_url
    assert url.port is not None
    return url.host, url.port


def ended(connection: socket.socket) -> bytes:
    """What comes until the server closes or cuts the connection."""
    connection.settimeout(20)
    said = b""
    try:
        while data := connection.recv(65536):
            said += data
    except ConnectionError:
        pass
    return said


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "server"}, 200),
        ({"host": "192.168.1.7:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "box.local"}, 200),
        ({"host": "chat.example.org"}, 200),  # trusted
        ({"host": "evil.example"}, 403),  # a name that was made to mean this machine
        ({"host": "evil.example.:80"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),  # a sandboxed page, a file
        ({"origin": "http://localhost:3000"}, 403),
        ({"host": "localhost:3000", "origin": "http://localhost:3000"}, 200),
        ({"origin": "https://app.example.org"}, 200),  # in --cors-origins
    ],
)
def test_without_keys_pages_of_other_sites_are_kept_out(
    headers: dict[str, str], status: int
) -> None:
    with running(
        trusted_hosts=["chat.example.org"], cors_origins=["https://app.example.org"]
    ) as server:
        # What a page may send without asking the browser's leave: any text, no special header.
        sent = server.http.post(
            CHAT, content=json.dumps(body("x")), headers={"content-type": "text/plain", **headers}
        )
        assert sent.status_code == status
        assert len(server.engine.requests) == (status == 200)
        assert server.http.get("/health", headers=headers).status_code == 200


def test_with_keys_the_key_is_the_door() -> None:
    with running(api_keys=["k"]) as server:
        headers = {"x-api-key": "k", "host": "chat.example.org", "origin": "https://a.example"}
        assert server.http.get("/v1/models", headers=headers).status_code == 200


def test_pages_of_other_sites_read_nothing_unless_they_are_named() -> None:
    asks = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization",
    }
    with running(api_keys=["k"]) as server:
        headers = {"origin": "https://app.example.org", "x-api-key": "k"}
        for response in (
            server.http.get("/v1/models", headers=headers),
            server.http.options(CHAT, headers={**headers, **asks}),
        ):
            assert not [h for h in response.headers if h.startswith("access-control")]
    with running(api_keys=["k"], cors_origins=["https://app.example.org"]) as server:
        allowed = server.http.options(CHAT, headers={"origin": "https://app.example.org", **asks})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.org"
        assert "access-control-allow-credentials" not in allowed.headers
        other = server.http.options(CHAT, headers={"origin": "https://evil.example", **asks})
        assert "access-control-allow-origin" not in other.headers
        # Refusals are readable too, or a page could not show what is wrong.
        refused = server.http.post(CHAT, headers={"origin": "https://app.example.org"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://app.example.org"


@pytest.mark.parametrize(
    ("lines", "in_pieces"),
    [
        ("x: " + "y" * 40_000, False),
        ("x: " + "y" * 40_000, True),
        ("\r\n".join(f"x{n}: y" for n in range(101)), False),
        ("\r\n".join(f"x{n}: y" for n in range(5000)), True),
    ],
)
def test_headers_are_bounded_and_the_refusal_is_json(lines: str, in_pieces: bool) -> None:
    head = f"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n\r\n".encode()
    with running() as server, socket.create_connection(address(server)) as connection:
        with suppress(ConnectionError):
            for at in range(0, len(head), 9000 if in_pieces else len(head)):
                connection.sendall(head[at : at + (9000 if in_pieces else len(head))])
                time.sleep(0.02)
        top, _, said = ended(connection).partition(b"\r\n\r\n")
        assert server.http.get("/health").status_code == 200
    # The kernel may drop an answer to what was never read; a connection that is closed is the least.
    assert in_pieces or top
    if top:
        assert top.startswith(b"HTTP/1.1 431 ")
        assert "16384 bytes" in json.loads(said)["error"]["message"]


@pytest.mark.parametrize("path", ["/" + "x" * 20_000, "/health?" + "x" * 20_000])
def test_an_address_is_bounded_too(path: str) -> None:
    with running() as server:
        assert server.http.get(path).status_code == 431


def test_what_is_not_http_is_a_400_in_the_shape_of_every_error() -> None:
    with running() as server, socket.create_connection(address(server)) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n")
        top, _, said = ended(connection).partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 400 ")
    assert json.loads(said)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("drip", [False, True])
def test_a_head_that_does_not_come_is_not_waited_for(drip: bool) -> None:
    with running(stall_seconds=0.3) as server, socket.create_connection(address(server)) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n")
        stop = threading.Event()

        def send_a_little() -> None:
            try:
                while not stop.wait(0.05):
                    slow.sendall(b"x: y\r\n")
            except OSError:
                pass

        thread = threading.Thread(target=send_a_little)
        if drip:
            thread.start()
        assert ended(slow) == b""
        stop.set()
        if drip:
            thread.join()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_is_a_408_that_is_not_tried_again(chunked: bool) -> None:
    with running(stall_seconds=0.3) as server:
        with socket.create_connection(address(server)) as slow:
            top = "transfer-encoding: chunked" if chunked else "content-length: 100000"
            slow.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{top}\r\n\r\n".encode())
            stop = threading.Event()

            def send_a_little() -> None:
                try:
                    while not stop.wait(0.05):
                        slow.sendall(b"1\r\n \r\n" if chunked else b" ")
                except OSError:
                    pass

            thread = threading.Thread(target=send_a_little)
            thread.start()
            said = ended(slow)
            stop.set()
            thread.join()
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"x-should-retry: false" in said
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_timeout"
        assert server.chat().status_code == 200, "and it costs nobody else anything"
        assert server.metric('lorachat_requests_rejected_total{code="body_timeout",status="408"}')


def test_a_connection_that_is_done_and_sends_nothing_more_is_closed_but_a_slow_answer_is_not() -> (
    None
):
    engine = FakeEngine(step_seconds=0.25)
    with running(engine, stall_seconds=0.3) as server:
        assert server.chat("abcd").json()["choices"][0]["message"]["content"] == "abcd"


def test_a_reader_who_takes_nothing_is_cut_and_its_slot_is_free() -> None:
    """What is buffered for it is bounded, so it is noticed long before the end of the answer."""
    engine = FakeEngine(script=lambda *_: "x" * 250, step_seconds=0.02)
    with running(engine, stall_seconds=0.5) as server, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(address(server))
        data = json.dumps(
            body(
                "x",
                stream=True,
                max_tokens=250,
                ignore_eos=True,
                logprobs=True,
                top_logprobs=20,
            )
        ).encode()
        slow.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        until(lambda: bool(engine.requests))
        until(lambda: engine.running == 0)
        assert engine.tokens_drawn < 250
        assert server.metric('lorachat_requests_cancelled_total{phase="decode"}') == 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_past_its_deadline_ends_in_words_and_frees_its_slot(stream: bool) -> None:
    with running(FakeEngine(step_seconds=0.1)) as server:
        headers = {"x-request-timeout": "0.35"}
        response = server.http.post(CHAT, json=body("x" * 100, stream=stream), headers=headers)
        until(lambda: server.engine.running == 0)
        if stream:
            events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
            assert events[-1] == "[DONE]"
            error = json.loads(events[-2])["error"]
            assert json.loads(events[1])["choices"][0]["delta"] == {"content": "x"}
        else:
            assert response.status_code == 504
            assert response.headers["x-should-retry"] == "false"
            error = response.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "deadline_exceeded")
        assert server.engine.tokens_drawn < 20
        assert server.chat("ab").status_code == 200


def test_a_request_that_still_waits_at_its_deadline_is_told_and_never_computed() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with running(engine, request_seconds=0.3) as server:
        for path, asked in (
            (CHAT, body("x")),
            ("/v1/completions", {"model": "base", "prompt": ["a", "b"]}),
            ("/v1/responses", {"model": "base", "input": "x"}),
        ):
            assert server.http.post(path, json=asked).status_code == 504
            until(lambda: engine.running == 0)
        # A caller may ask for less and not for more: else it would wait for an hour, and this test give up.
        patient = server.http.post(
            CHAT, json=body("x"), headers={"x-request-timeout": "3600"}, timeout=60
        )
        assert patient.status_code == 504
        engine.gate.set()
        assert server.chat().status_code == 200
    assert engine.tokens_drawn == 6, "of the last one: five letters and the end"


@pytest.mark.parametrize("given", ["0", "-1", "soon", "nan", "inf", ""])
def test_a_deadline_that_is_no_time_is_a_400(given: str) -> None:
    with running() as server:
        response = server.http.post(CHAT, json=body("x"), headers={"x-request-timeout": given})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-timeout"


def test_an_answers_limit_can_be_the_operators() -> None:
    with running(FakeEngine(script=lambda *_: "x" * 100), max_answer_tokens=20) as server:
        unsaid = server.chat("a").json()
        assert unsaid["usage"]["completion_tokens"] == 20
        for path, field, asked in (
            (CHAT, "max_tokens", body("x")),
            (CHAT, "max_completion_tokens", body("x")),
            ("/v1/completions", "max_tokens", {"model": "base", "prompt": "x"}),
            ("/v1/responses", "max_output_tokens", {"model": "base", "input": "x"}),
        ):
            assert server.http.post(path, json={**asked, field: 20}).status_code == 200
            refused = server.http.post(path, json={**asked, field: 21})
            assert refused.status_code == 400
            error = refused.json()["error"]
            assert error["param"] == field
            assert f"'{field}' is too large: 21" in error["message"]
            assert "at most 20 completion tokens" in error["message"]


def deep(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def schema(value: object) -> dict[str, object]:
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": value},
        }
    }


def tool(number: int) -> dict[str, object]:
    return {"type": "function", "function": {"name": f"f{number}"}}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"messages": [{"role": "user", "content": "x"}] * 2049}, "messages"),
        ({"tools": [tool(n) for n in range(129)]}, "tools"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"n": 129}, "'n'"),
        ({"n": 5}, "at most 4 choices"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        (schema(deep(40)), "nested deeper"),
        (schema({"enum": ["x" * 140_000]}), "larger than"),
    ],
)
def test_every_size_in_a_request_has_a_limit_that_is_named(
    fields: dict[str, object], words: str
) -> None:
    with running() as server:
        response = server.http.post(CHAT, json=body("x") | fields)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
        assert server.engine.requests == []


def test_while_it_drains_what_runs_ends_and_what_comes_is_told_to_go_elsewhere() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    with running(engine) as server:
        answers: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.http.base_url}{CHAT}", json=body("abc"), timeout=20)
            )
        )
        thread.start()
        until(lambda: engine.running == 1)
        server.service.is_draining = True
        assert server.http.get("/ready").json() == {"status": "draining"}
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200, "it must not be killed for it"
        refused = server.chat()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["error"]["code"] == "unavailable"
        engine.gate.set()
        thread.join()
        assert answers[0].json()["choices"][0]["message"]["content"] == "abc"


def test_all_bodies_together_are_bounded_and_their_room_comes_back() -> None:
    """A hundred bodies of 4 MB took 7 GB."""
    engine = FakeEngine()
    engine.gate.clear()
    with running(engine, max_bodies_bytes=100_000) as server, httpx.Client(timeout=30) as other:
        held = other.build_request(
            "POST", f"{server.http.base_url}{CHAT}", json=body("x", stream=True, user="y" * 60_000)
        )
        answer = other.send(held, stream=True)
        refused = server.chat("x", user="y" * 60_000)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "server_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        assert server.chat("x").status_code == 200
        answer.read()
        until(lambda: server.chat("x", user="y" * 60_000).status_code == 200)
