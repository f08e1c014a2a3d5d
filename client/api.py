"""Talks to the server over HTTP; with `client.wire`, the only part of the client that knows how.

Requests go out, typed events come in, and whatever goes wrong is a `ChatError`. Nothing is retried:
a repeated chat request would compute the answer twice, so that decision is the caller's.
"""

import asyncio
import copy
import ipaddress
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self

import httpx

from client import wire
from client.errors import ChatError, ErrorKind
from client.sse import EventDecoder
from client.types import ChatRequest, Delta, Done, Event, Model, Standing, Timings, Usage

# A CPU may work for minutes on a long prompt before the first byte, so silence is borne far longer
# than a failing connection.
_TIMEOUT = httpx.Timeout(connect=5.0, read=300.0, write=30.0, pool=None)
_SHORT_TIMEOUT = httpx.Timeout(5.0)
_NOT_TOLD = (401, 403, 404, 405)
# Idle connections are dropped before uvicorn drops them (after 5 s): a request sent into a
# connection that is just being closed would fail, and may not be repeated.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=2.0)


class ChatClient:
    """Speaks to one server; belongs to the event loop it is first used in.

    Use it as an async context manager, or call `aclose`. The methods raise nothing but `ChatError`;
    the constructor raises ValueError if the address or the key cannot be one.
    """

    def __init__(self, server: str, api_key: str | None = None) -> None:
        self.server = normalise_address(server)
        api_key = normalise_key(api_key or "")
        self._api_key = api_key
        self._http = httpx.AsyncClient(
            base_url=self.server,
            timeout=_TIMEOUT,
            limits=_LIMITS,
            # A proxy named in the environment cannot reach this machine's own loopback.
            trust_env=not _is_loopback(self.server),
        )

    def with_key(self, api_key: str | None) -> "ChatClient":
        """The same connections with another key; without one, this client itself.

        Raises ValueError as the constructor does. Only the original needs to be closed.
        """
        api_key = normalise_key(api_key or "")
        if not api_key:
            return self
        other = copy.copy(self)
        other._api_key = api_key
        return other

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def check_ready(self) -> None:
        """Return if the server has loaded its model; raise, with kind LOADING, while it loads.

        Servers of other makes have no such route: vLLM, for one, listens only when it has loaded. What answers in
        another language altogether is found out by the next question.
        """
        try:
            await self._get("/ready")
        except ChatError as error:
            if error.kind is not ErrorKind.NOT_A_SERVER:
                raise

    async def models(self) -> list[Model]:
        """The base, the adapters and their versions, in the server's order."""
        response = await self._get("/v1/models")
        try:
            return [wire.model(entry) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise wire.not_a_chat_server(self.server) from error

    async def metrics(self) -> str | None:
        """What the server measures, in Prometheus' text form; None if it has no such route."""
        try:
            return (await self._get("/metrics")).text
        except ChatError as error:
            if error.kind is ErrorKind.NOT_A_SERVER:
                return None
            raise

    async def standings(self) -> dict[str, Standing] | None:
        """How every version on the server's volume fares, by `NAME@VERSION`.

        None where the key is not an operator's, or the server keeps this to itself or to another port.
        """
        try:
            response = await self._http.get(
                "/admin/adapters", timeout=_SHORT_TIMEOUT, headers=self._headers
            )
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error
        if response.status_code in _NOT_TOLD:
            return None
        if not response.is_success:
            raise wire.status_error(response, None, bool(self._api_key))
        try:
            found = [wire.standing(entry) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise wire.not_a_chat_server(self.server) from error
        return {standing.id: standing for standing in found}

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Event]:
        """Ask, and give the answer as it comes: `Delta`s, then exactly one `Done`.

        Closing the iterator, or cancelling the task that reads it, closes the connection, at which
        the server stops computing. Close it with `contextlib.aclosing`: one that is left to the
        garbage collector computes on until then.

        Raises ChatError before the first event or after any; the text so far stays good.
        """
        stopwatch = _Stopwatch()
        try:
            async with self._http.stream(
                "POST",
                "/v1/chat/completions",
                json=wire.request_body(request),
                headers=self._headers,
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise wire.status_error(response, request.model, bool(self._api_key))
                if not response.headers.get("content-type", "").startswith("text/event-stream"):
                    raise wire.not_a_chat_server(self.server)
                async with aclosing(self._events(response, request.model, stopwatch)) as events:
                    async for event in events:
                        yield event
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error

    async def _events(
        self, response: httpx.Response, model: str, stopwatch: "_Stopwatch"
    ) -> AsyncGenerator[Event]:
        decoder = EventDecoder()
        finish_reason: str | None = None
        usage: Usage | None = None
        body = response.aiter_bytes()
        async for chunk_bytes in body:
            try:
                payloads = decoder.feed(chunk_bytes)
            except UnicodeDecodeError as error:
                raise wire.not_a_chat_server(self.server) from error
            for payload in payloads:
                if payload == "[DONE]":
                    if finish_reason is None:
                        raise _connection_ended()
                    done = Done(finish_reason, model, usage, stopwatch.timings(usage))
                    await _drain(body)
                    yield done
                    return
                try:
                    chunk = json.loads(payload)
                    if failure := wire.stream_error(chunk):
                        raise failure
                    text, reason = wire.choice(chunk)
                    usage = wire.usage(chunk) or usage
                    model = str(chunk.get("model") or model)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise wire.not_a_chat_server(self.server) from error
                finish_reason = reason or finish_reason
                if text:
                    stopwatch.mark()
                    yield Delta(text)
        raise _connection_ended()

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}

    async def _get(self, path: str) -> httpx.Response:
        try:
            response = await self._http.get(path, timeout=_SHORT_TIMEOUT, headers=self._headers)
        except httpx.HTTPError as error:
            raise self._transport_error(error) from error
        if not response.is_success:
            raise wire.status_error(response, None, bool(self._api_key))
        return response

    def _transport_error(self, error: httpx.HTTPError) -> ChatError:
        """The error for a connection that was not made, fell silent or broke."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
            return ChatError(
                ErrorKind.BROKEN,
                f"The server at {self.server} has been silent for too long.",
                "It may be overloaded: try again later, or with a shorter conversation.",
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.ProxyError):
            return ChatError(
                ErrorKind.AWAY,
                f"No server answers at {self.server}.",
                "Start it (python -m server), or correct the address (--server, LORACHAT_SERVER).",
            )
        return _connection_ended()


class _Stopwatch:
    """Measures one answer, from its own creation on."""

    def __init__(self) -> None:
        self._sent = time.perf_counter()
        self._first: float | None = None
        self._last = self._sent

    def mark(self) -> None:
        """Note that text has come now."""
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last

    def timings(self, usage: Usage | None) -> Timings:
        total = time.perf_counter() - self._sent
        if self._first is None:
            return Timings(None, total, None)
        decoding = self._last - self._first
        pace = None
        if usage is not None and usage.completion_tokens > 1 and decoding > 0:
            pace = (usage.completion_tokens - 1) / decoding
        return Timings(self._first - self._sent, total, pace)


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Read to the end of a body that is complete but for its end mark.

    Else the connection would be cut instead of reused, and the server would count a client that
    went away. Whatever goes wrong here does no harm to the answer.
    """
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(1.0):
            async for _ in body:
                pass


def normalise_address(server: str) -> str:
    """The server's root, without the trailing `/v1` that other OpenAI clients want.

    Raises ValueError if it is not an http(s) address.
    """
    address = server.strip().rstrip("/").removesuffix("/v1")
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(
            f"“{server}” is not a server's address; it should look like http://127.0.0.1:8000"
        )
    return address


def normalise_key(api_key: str) -> str:
    """The key without surrounding white space, such as the line feed of the file it came from.

    Raises ValueError (which does not show the key) if it cannot be sent in a header.
    """
    api_key = api_key.strip()
    if not (api_key.isascii() and api_key.isprintable()):
        raise ValueError("the API key has characters that no key can have")
    return api_key


def _is_loopback(address: str) -> bool:
    host = httpx.URL(address).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _connection_ended() -> ChatError:
    return ChatError(
        ErrorKind.BROKEN,
        "The connection ended before the answer did.",
        "Try again for a whole answer; what came so far is kept.",
    )
