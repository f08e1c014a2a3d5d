"""The incidents of other servers, tried here: what one request, one model or one file did to them.

SECURITY.md has the list, and names the test of each; those that other files hold for reasons of their own are not
repeated here.
"""

from __future__ import annotations

import json
import random
import re
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import starlette
from pydantic import BaseModel, ValidationError

from server.api.schemas.chat import ChatRequest
from server.api.schemas.completions import CompletionRequest
from server.api.schemas.examples import EXAMPLES
from server.api.schemas.responses import ResponseRequest
from server.errors import ModelLoadError
from server.model.gguf_file import GGUFHeader
from server.model.loader import load_base
from server.model.mapped_file import MappedFile
from server.tools.brackets import Brackets
from server.tools.formats import ToolFormat
from server.tools.parser import CallParser
from tests.conftest import ROOT
from tests.fuzz.raw import PATHS, damaged, mutated
from tests.models import write_tiny_model
from tests.server.api_fakes import FakeEngine
from tests.server.api_live import CHAT, Running, body, running

# What would tell a stranger about the inside: addresses of memory, paths, source lines.
INSIDE = re.compile(
    r"0x[0-9a-fA-F]{5,}|/(?:usr|home|root|tmp|proc|app|work)/|\.py\b|Traceback|line \d+, in "
)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(FakeEngine(max_running=10**6)) as server:
        yield server


@contextmanager
def bait() -> Iterator[tuple[str, socket.socket]]:
    """An address that nobody should call, and the socket that would know."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.3)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x", listener


def test_no_error_tells_of_the_inside(server: Running) -> None:
    """vLLM put addresses of its memory into messages (CVE-2026-22778)."""
    chance = random.Random(5)
    statuses = set()
    for number in range(400):
        kind = sorted(PATHS)[number % len(PATHS)]
        example: Any = json.loads(json.dumps(chance.choice(sorted(EXAMPLES[kind].items()))[1]))
        data = json.dumps(mutated(mutated(example, chance), chance)).encode(errors="replace")
        if number % 3 == 0:
            data = damaged(data, chance)
        response = server.http.post(PATHS[kind], content=data)
        statuses.add(response.status_code)
        if response.status_code != 200:
            told = response.text.replace(json.dumps(data.decode(errors="replace")), "")
            assert not INSIDE.search(told), told
    assert {400} <= statuses <= {200, 400, 404, 413}


@pytest.mark.parametrize("path", sorted(set(PATHS.values())))
def test_no_number_is_too_much(server: Running, path: str) -> None:
    """Unbounded n and best_of (CVE-2026-34756), a negative count (CVE-2026-21869), NaN: each a 400, or an answer."""
    document = server.http.get("/openapi.json").json()
    reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = reference["schema"]["$ref"].rpartition("/")[2]
    example: dict[str, Any] = next(iter(EXAMPLES[name].values()))
    numbers = [
        field
        for field, schema in document["components"]["schemas"][name]["properties"].items()
        if re.search(r'"(integer|number)"', json.dumps(schema))
    ]
    assert numbers or path in ("/apply-template", "/tokenize")
    for field in [*numbers, "best_of", "n_discard"]:
        for value in (
            "-1",
            "-9223372036854775809",
            "99999999999999999999",
            "1e400",
            "NaN",
            "-Infinity",
        ):
            rest = {k: v for k, v in example.items() if k != field}
            text = json.dumps(rest)[:-1] + f', "{field}": {value}}}'
            response = server.http.post(path, content=text)
            assert response.status_code in (200, 400), (field, value, response.text)
            if field in numbers and value in ("1e400", "NaN", "-Infinity"):
                assert response.status_code == 400, (field, value)
    server.engine.requests.clear()
    assert server.chat("h", n=129).status_code == 400
    assert not server.engine.requests


def test_nothing_is_fetched_because_a_request_names_it(server: Running) -> None:
    """Images of any size fetched from anywhere (CVE-2026-0599, CVE-2026-22773), gr.load (CVE-2026-28416)."""
    with bait() as (url, listener):
        image = {"type": "image_url", "image_url": {"url": url}}
        for fields in (
            {"messages": [{"role": "user", "content": [image]}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, image]}]},
            {"model": url},
            {"lora": [{"path": url}]},
            {"chat_template": url},
            {"documents": [{"url": url}]},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}},
        ):  # fmt: skip
            response = server.http.post(CHAT, json={**body("x"), **fields})
            assert response.status_code in (400, 404), (fields, response.text)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_tensors_and_templates_of_a_caller_are_refused_by_name(server: Running) -> None:
    """torch.load of prompt_embeds (CVE-2025-62164), chat_template_kwargs (CVE-2025-62426), Jinja of a caller."""
    for fields in (
        {"prompt_embeds": "gAN9cQAu"},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template": "{{ ''.__class__.__mro__ }}"},
    ):
        for path, request in (
            (CHAT, body("x")),
            ("/v1/completions", {"model": "base", "prompt": "x"}),
        ):
            response = server.http.post(path, json={**request, **fields})
            assert response.status_code == 400
            assert next(iter(fields)) in response.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["", [], [[]], [""]])
def test_an_empty_prompt_is_a_400(server: Running, prompt: Any) -> None:
    """It crashed vLLM 0.5.4."""
    answer = server.http.post("/v1/completions", json={"model": "base", "prompt": prompt})
    assert answer.status_code == 400
    assert server.chat("").status_code == 400
    assert server.chat("still here").status_code == 200


PARAMETERS: list[Any] = [
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "(" * 300}}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$" + "(b*)*" * 40}}},
    {"type": "object", "properties": {"a": {"type": "string", "pattern": "[\\"}}},
    {"type": "object", "properties": {"a": {"type": ["strin", 5]}}},
    {"type": {}},
    {"properties": []},
    {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
    {"type": "object", "properties": {"a": {"type": "string", "minLength": 10**9}}},
    {"type": "array", "minItems": 10**9, "items": {"type": "string"}},
    {"enum": []},
    {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"type": "integer"}]}}},
]


@pytest.mark.parametrize("schema", PARAMETERS)
def test_a_schema_stops_nobody(server: Running, schema: Any) -> None:
    """Malformed and costly patterns and types stopped whole servers (CVE-2025-48944, -48942, -48943)."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    for fields in ({"tools": [tool], "tool_choice": "required"}, {"response_format": form}):
        response = server.chat("x", max_tokens=3, **fields)
        assert response.status_code in (200, 400), response.text
    assert server.chat("still here").status_code == 200


MANY = 5000
WRONG: Any = [{} for _ in range(MANY)]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": WRONG}]}),
        (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": WRONG}]}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 10}] * 500}),
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}], "stop": WRONG}),
        (CompletionRequest, {"prompt": WRONG}),
        (CompletionRequest, {"prompt": [WRONG]}),
        (ResponseRequest, {"input": [{"role": "user", "content": WRONG}]}),
        (ResponseRequest, {"input": WRONG}),
    ],
)
def test_a_body_is_not_read_on_after_what_is_wrong_with_it(
    kind: type[BaseModel], fields: dict[str, Any]
) -> None:
    """The errors of all parts of a body of 4 MB took 3.4 GB, and every stream waited eleven seconds for them."""
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "base", **fields})
    assert caught.value.error_count() < 50


LONG = 20_000


@pytest.mark.parametrize("format_", list(ToolFormat))
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "' + "a" * LONG,
        '<tool_call>{"a": ' + "[" * LONG + "]" * LONG + "}</tool_call>",
        "[f(" + "a" * LONG,
        "[f(a=" + "[" * LONG + "]" * LONG + ")]",
        '{"name": "f", "parameters": {"a": ' + "[" * LONG + "]" * LONG + "}}",
        '{ "x": ' * LONG,
        "<tool_call>" * LONG,
    ],
)
def test_no_answer_makes_its_parser_look_twice(
    monkeypatch: pytest.MonkeyPatch, format_: ToolFormat, text: str
) -> None:
    """Regular expressions over a growing answer are quadratic (vLLM's tool parsers). Characters are counted here."""
    looked_at = 0
    real = Brackets.end_of

    def counting(brackets: Brackets, piece: str) -> int | None:
        nonlocal looked_at
        looked_at += len(piece)
        return real(brackets, piece)

    monkeypatch.setattr(Brackets, "end_of", counting)
    parser = CallParser(format_, {"f"})
    for at in range(0, len(text), 3):
        parser.push(text[at : at + 3])
    parser.finish()
    assert looked_at <= 2 * len(text)


def test_a_model_folder_brings_no_code(tmp_path: Path) -> None:
    """Classes named in config.json were imported (CVE-2026-22807), pickles loaded."""
    folder = tmp_path / "model"
    write_tiny_model(folder)
    marker = tmp_path / "ran"
    evil = f"open({str(marker)!r}, 'w')\n"
    (folder / "modeling_evil.py").write_text(evil)
    (folder / "tokenization_evil.py").write_text(evil)
    names = {"AutoConfig": "modeling_evil.A", "AutoModelForCausalLM": "modeling_evil.A"}
    for file, auto in (
        ("config.json", names),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_evil.A", None]}),
    ):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto}))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with suppress(ModelLoadError):  # to refuse is as good
        load_base(str(folder))
    assert not marker.exists()
    assert "modeling_evil" not in sys.modules

    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError):
        load_base(str(folder))


def test_arrays_in_arrays_use_no_stack_up(tmp_path: Path) -> None:
    """GGUF files of hostile shape (CVE-2026-27940, CVE-2025-53630, CVE-2026-7482)."""
    nested = struct.pack("<IQ", 9, 1) * 100_000
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    path = tmp_path / "deep.gguf"
    path.write_bytes(header + struct.pack("<I", 9) + nested)
    with pytest.raises(ModelLoadError, match=r"deep\.gguf has an array of arrays"):
        GGUFHeader(MappedFile(path))


def test_no_route_sends_files_or_takes_forms(server: Running) -> None:
    """Starlette's Range header (CVE-2025-62727) and multipart (CVE-2025-54121): neither has a place here."""
    assert tuple(map(int, starlette.__version__.split(".")[:2])) >= (0, 49)
    for path in (ROOT / "server").rglob("*.py"):
        used = re.search(
            r"FileResponse|StaticFiles|UploadFile|Form\(|\.form\(", path.read_text("utf-8")
        )
        assert used is None, f"{path}: {used}"
    form = server.http.post(CHAT, files={"file": b"x" * 100})
    assert form.status_code == 400
