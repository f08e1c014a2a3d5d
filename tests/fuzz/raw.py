"""Bodies that no schema describes, and bytes that are no request."""

from __future__ import annotations

import json
import random
import socket
import string
from typing import Any
from urllib.parse import urlsplit

import httpx

from server.api.schemas.examples import EXAMPLES

PATHS = {
    "ChatRequest": "/v1/chat/completions",
    "CompletionRequest": "/v1/completions",
    "ResponseRequest": "/v1/responses",
    "TokenizeRequest": "/tokenize",
    "DetokenizeRequest": "/detokenize",
    "ApplyTemplateRequest": "/apply-template",
}
ALLOWED = {200, 400, 401, 404, 405, 413, 429}
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 10**30, -(2**63), 2**63, "", "x", "\0", "\ud83d\ude00", "<|im_end|>",
    [], {}, [[]], [{}], {"type": "text"}, {"a": {"b": []}}, ["a", 1, None], "9" * 400, "auto", "required", "none",
]  # fmt: skip


def fuzz_bodies(url: str, count: int, seed: int) -> list[str]:
    """Valid requests with one to three things changed anywhere, or with their JSON text damaged."""
    rng = random.Random(seed)
    findings = []
    with httpx.Client(base_url=url, timeout=60) as http:
        for number in range(count):
            kind = rng.choice(sorted(PATHS))
            body: Any = json.loads(json.dumps(rng.choice(sorted(EXAMPLES[kind].items()))[1]))
            body.setdefault("max_tokens", 4)
            for _ in range(rng.randint(1, 3)):
                body = mutated(body, rng)
            data = json.dumps(body).encode(errors="replace")
            if rng.random() < 0.3:
                data = damaged(data, rng)
            path = PATHS[kind]
            try:
                response = http.post(path, content=data)
            except httpx.HTTPError as error:
                findings.append(f"#{number} {path} {data[:300]!r}: {error!r}")
                continue
            if response.status_code not in ALLOWED:
                findings.append(f"#{number} {path} {data[:300]!r}: {response.status_code}")
            elif response.status_code != 200 and "error" not in response.json():
                findings.append(f"#{number} {path} {data[:300]!r}: an error of another shape")
    return findings


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one thing changed, somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(sorted(value))
        changed = dict(value)
        match rng.randrange(5):
            case 0:
                del changed[key]
            case 1:
                changed["".join(rng.choices(string.ascii_letters + "_", k=6))] = rng.choice(ODD)
            case _:
                changed[key] = mutated(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        match rng.randrange(4):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value + [value[at]] * rng.randint(1, 40)
            case _:
                return [*value[:at], mutated(value[at], rng), *value[at + 1 :]]
    return rng.choice(ODD)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The text with bytes changed, cut off or doubled."""
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(rng.randint(1, 8)) + data[at:]
        case 2:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case _:
            return data * 2


def fuzz_sockets(url: str, count: int, seed: int) -> list[str]:
    """Bytes over a socket, the connection often dropped half way. The server must only not answer with 5xx."""
    rng = random.Random(seed)
    address = urlsplit(url)
    findings = []
    for number in range(count):
        data = raw_request(rng)
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            connection.sendall(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.4 else data)
            if rng.random() < 0.6:
                continue  # gone before the answer
            connection.settimeout(0.05)
            try:
                answer = connection.recv(64)
            except OSError:
                continue
            if answer.startswith(b"HTTP/1.1 5"):
                findings.append(f"#{number} {data[:300]!r}: {answer!r}")
    return findings


def raw_request(rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randint(1, 400))
    kind = rng.choice(sorted(PATHS))
    body = json.dumps(
        {**rng.choice(sorted(EXAMPLES[kind].items()))[1], "stream": rng.random() < 0.5}
    ).encode()
    headers = [
        b"host: x",
        b"content-length: " + rng.choice([str(len(body)), str(len(body)), "-1", "9" * 30, "1", "x", ""]).encode(),
        rng.choice([b"x-request-id: " + rng.randbytes(4), b"authorization: Bearer", b"expect: 100-continue",
                    b"transfer-encoding: chunked", b"connection: close", b"content-encoding: gzip", b"a: b"]),
    ]  # fmt: skip
    method = rng.choice([b"POST", b"POST", b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"X"])
    path = rng.choice(
        [PATHS[kind], PATHS[kind], "/v1/models/%00%ff", "/../../etc/passwd", "//", "*"]
    ).encode()
    return method + b" " + path + b" HTTP/1.1\r\n" + b"\r\n".join(headers) + b"\r\n\r\n" + body
