"""Answers with a form: whatever a model would rather say, the answer satisfies the schema or the tool's parameters."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from server.errors import OverloadedError
from server.grammar import compiler as compiler_module
from server.grammar.json_schema import checked_schema
from server.grammar.lark import json_grammar
from tests.conftest import ROOT
from tests.server.api_fakes import END, LAST, VOCAB_SIZE, FakeEngine, FakeModel
from tests.server.api_live import Running, body, running
from tests.server.json_schemas import SCHEMAS, satisfies, schemas

LLAMA = "{% if tools %}{{ '\"parameters\"' }}{% endif %}{{ messages[-1]['content'] }}"
OPTIONS = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": OPTIONS}}
CLOCK = {"type": "function", "function": {"name": "clock"}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Draws at random among what is allowed; without a constraint it echoes the last message."""
    with running(FakeEngine(script=_script)) as server:
        yield server


def _script(prompt: str, request: Any, index: int) -> str:
    return "" if request.new_constraint else prompt


def schema_format(schema: Any) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def test_an_answer_satisfies_its_schema_whatever_is_drawn(server: Running) -> None:
    for name, schema in SCHEMAS.items():
        for seed in range(5):
            response = server.chat(
                "hi", response_format=schema_format(schema), seed=seed, max_tokens=240
            )
            choice = response.json()["choices"][0]
            if choice["finish_reason"] == "stop":
                assert satisfies(json.loads(choice["message"]["content"]), schema), (name, choice)


@settings(max_examples=40, deadline=None)
@given(schema=schemas(), seed=st.integers(0, 1000))
def test_random_schemas_are_satisfied(server: Running, schema: dict[str, Any], seed: int) -> None:
    response = server.chat("hi", response_format=schema_format(schema), seed=seed, max_tokens=250)
    choice = response.json()["choices"][0]
    if choice["finish_reason"] == "stop":
        assert satisfies(json.loads(choice["message"]["content"]), schema)


def test_objects_get_the_properties_that_they_name_and_no_others_unless_asked_for() -> None:
    """A model left free to invent properties does so without end. What comes out satisfies the schema all the same."""

    def closed(schema: Any) -> Any:
        made = json.loads(checked_schema(schema, "x"))
        made.pop("x-guidance")
        return made

    item = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shut = {**item, "additionalProperties": False}
    assert closed(item) == shut
    assert closed({"items": item, "$defs": {"x": item}}) == {"items": shut, "$defs": {"x": shut}}
    assert closed({"anyOf": [item, {"type": "null"}]}) == {"anyOf": [shut, {"type": "null"}]}
    named = {"properties": {"properties": {"type": "string"}}}  # a property of that name
    assert closed(named) == {**named, "additionalProperties": False}
    for kept in (
        {**item, "additionalProperties": True},
        {**item, "required": ["b"]},
        {"const": item},
        {"allOf": [item, item]},
        {"type": "object"},
    ):
        assert closed(kept) == kept


def test_the_end_is_allowed_exactly_where_the_grammar_is_complete() -> None:
    import asyncio

    from server.grammar.compiler import GrammarCompiler
    from tests.server.api_fakes import VOCAB_SIZE, FakeModel

    tokenizer = FakeModel().tokenizer
    grammar = json_grammar(checked_schema({"type": "integer", "minimum": 10, "maximum": 99}, "x"))
    make = asyncio.run(GrammarCompiler(VOCAB_SIZE).compile(grammar, tokenizer, [END, 0], "x"))
    constraint = make()
    for character, is_complete in (("", False), ("4", False), ("2", True)):
        for token_id in tokenizer.encode(character, add_special_tokens=False):
            constraint.advance(token_id)
        mask = constraint.allowed()
        assert len(mask) >= 4 * -(-VOCAB_SIZE // 32)
        for end in (END, 0):
            assert bool(mask[end >> 3] >> (end & 7) & 1) is is_complete
        assert constraint.is_complete is is_complete
    other = make()
    assert not other.is_complete, "choices share a grammar, not its state"


def test_a_grammar_without_end_holds_up_new_grammars_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """llguidance never comes back from some schemas (an allOf of thirty patterns), and no thread can be stopped."""
    tokenizer = FakeModel().tokenizer
    stuck = threading.Event()

    async def run() -> None:
        compiler = compiler_module.GrammarCompiler(VOCAB_SIZE)
        await compiler.compile("start: /a/", tokenizer, [END], "x")
        monkeypatch.setattr(compiler_module, "COMPILE_SECONDS", 0.02)
        real = compiler_module.LLMatcher.grammar_from_lark

        def blocking(grammar: str) -> str:
            stuck.wait()
            return real(grammar)

        matcher = SimpleNamespace(grammar_from_lark=blocking)
        monkeypatch.setattr(compiler_module, "LLMatcher", matcher)
        try:
            for number in range(40):  # more than there are threads for everything else
                with pytest.raises(OverloadedError):
                    await compiler.compile(f"start: /b{number}/", tokenizer, [END], "x")
            await asyncio.wait_for(asyncio.to_thread(lambda: None), 20)
            assert (await compiler.compile("start: /a/", tokenizer, [END], "x"))()
        finally:
            monkeypatch.undo()
            stuck.set()

    asyncio.run(run())


def test_work_without_end_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import threading; from server.grammar.worker import Worker; begun = threading.Event()\n"
        "Worker('x').submit(lambda: (begun.set(), threading.Event().wait())); begun.wait()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=ROOT)


def test_compiled_schemas_are_shared_within_a_key_and_a_salt_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the time would tell whether others have sent the same schema."""
    from server.grammar import compiler

    compiled: list[str] = []
    matcher = compiler.LLMatcher

    class Watched:
        grammar_from_lark = staticmethod(matcher.grammar_from_lark)

        def __new__(cls, *args: Any, **options: Any) -> Any:
            compiled.append(args[1])
            return matcher(*args, **options)

    monkeypatch.setattr(compiler, "LLMatcher", Watched)
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": "mine"}}}
    with running(api_keys=["a" * 16, "b" * 16]) as server:
        for key, salt, count in (
            ("a", None, 1),
            ("a", None, 1),
            ("b", None, 2),
            ("b", "s", 3),
            ("b", "s", 3),
            ("b", None, 3),
            ("a", None, 3),
        ):
            answer = server.http.post(
                "/v1/chat/completions",
                json=body("x", response_format=schema, **({"cache_salt": salt} if salt else {})),
                headers={"Authorization": f"Bearer {key * 16}"},
            )
            assert answer.status_code == 200, answer.text
            assert len(compiled) == count, (key, salt)


def test_a_json_object_is_one(server: Running) -> None:
    ended = 0
    for seed in range(12):
        choice = server.chat(
            "x", response_format={"type": "json_object"}, seed=seed, max_tokens=200
        ).json()["choices"][0]
        if choice["finish_reason"] == "stop":
            ended += 1
            assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert ended


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"not": {"type": "string"}}, '"not"'),
        ({"$ref": "https://example.org/x"}, "not"),
        ({"type": "nothing"}, "type"),
        ({"x-guidance": {}}, "x-guidance"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused_in_words(
    server: Running, schema: dict[str, Any], words: str
) -> None:
    response = server.chat("x", response_format=schema_format(schema))
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"not": {}}, 'Unimplemented keys: ["not"]'),
        ({"enum": []}, "Unsatisfiable schema: anyOf is empty"),
        ({"$ref": "#"}, "no text satisfies it"),
    ],
)
def test_a_refusal_speaks_of_the_schema_and_not_of_our_grammar(
    server: Running, schema: dict[str, Any], reason: str
) -> None:
    response = server.chat("x", response_format=schema_format({"title": "x" * 2000, **schema}))
    message = response.json()["error"]["message"]
    assert message.endswith(f"so it is refused: {reason}")


@pytest.mark.parametrize("template", [LAST, LLAMA])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_refusal_names_the_function_whose_parameters_are_meant(
    template: str, choice: str
) -> None:
    bad = {"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]}
    functions = [
        {"name": "clock", "strict": True},
        {"name": "bad", "parameters": bad, "strict": True},
        {"name": "last", "strict": True},
    ]
    tools = [{"type": "function", "function": function} for function in functions]
    with running(template=template) as server:
        response = server.chat("x", tools=tools, tool_choice=choice)
    assert response.status_code == 400
    message = response.json()["error"]["message"]
    assert message.endswith("so it is refused: function 'bad': Unimplemented keys: [\"not\"]")


def test_a_grammar_that_gives_up_is_its_callers_to_simplify(server: Running) -> None:
    """Told that the fault is ours, OpenAI's clients would have it computed twice more."""
    wanted = schema_format({"type": "string", "pattern": "(a|b)*" * 5000})
    whole = server.chat("x", response_format=wanted, max_tokens=20)
    assert whole.status_code == 400, whole.text
    assert whole.json()["error"]["param"] == "response_format"
    *_, last = server.stream("x", response_format=wanted, max_tokens=20)
    assert last["error"]["param"] == "response_format"
    format_ = {"type": "json_schema", **wanted["json_schema"]}
    response = server.http.post(
        "/v1/responses", json={"model": "base", "input": "x", "text": {"format": format_}}
    )
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "text.format"


def test_schemas_are_bounded_in_size_and_depth(server: Running) -> None:
    nested: dict[str, Any] = {"type": "integer"}
    for _ in range(100):
        nested = {"type": "array", "items": nested}
    for schema, words in ((nested, "deeper than"), ({"enum": ["x" * 200_000]}, "larger than")):
        refusal = server.chat("x", response_format=schema_format(schema))
        assert refusal.status_code == 400
        assert words in refusal.json()["error"]["message"]


def test_what_would_fight_the_grammar_is_refused(server: Running) -> None:
    for fields in ({"min_tokens": 2}, {"ignore_eos": True}):
        response = server.chat("x", response_format={"type": "json_object"}, **fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == next(iter(fields))


@pytest.mark.parametrize("template", ["{{ messages[-1]['content'] }}", LLAMA])
def test_forced_calls_are_valid_in_every_format_streamed_or_not(template: str) -> None:
    with running(FakeEngine(script=lambda *_: ""), template=template) as server:
        for seed in range(6):
            for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
                fields: dict[str, Any] = {
                    "tools": [WEATHER, CLOCK], "tool_choice": choice, "seed": seed,
                    "parallel_tool_calls": False, "max_tokens": 200,
                }  # fmt: skip
                whole = server.chat("x", **fields).json()["choices"][0]
                assert whole["finish_reason"] == "tool_calls"
                assert whole["message"]["content"] is None
                (call,) = whole["message"]["tool_calls"]
                name, arguments = (
                    call["function"]["name"],
                    json.loads(call["function"]["arguments"]),
                )
                if isinstance(choice, dict):
                    assert name == "weather"
                assert satisfies(arguments, OPTIONS) if name == "weather" else arguments == {}
                told = [
                    c["choices"][0]["delta"].get("tool_calls", [{}])[0]
                    for c in server.stream("x", **fields)
                ]
                streamed = "".join(t.get("function", {}).get("arguments", "") for t in told)
                assert json.loads(streamed) == arguments


def test_several_calls_may_be_made_unless_that_is_forbidden() -> None:
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    with running(FakeEngine(script=lambda *_: f"{call}\n{call}")) as server:
        for choice in ("required", "auto"):
            for parallel, expected in ((True, 2), (False, 1)):
                fields = {"tool_choice": choice, "parallel_tool_calls": parallel}
                message = server.chat("x", tools=[CLOCK], **fields).json()["choices"][0]["message"]
                assert len(message["tool_calls"]) == expected


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("said", "fields", "content", "calls"),
    [
        (f"I look.\n{CALL}", {}, "I look.", 1),
        ("No need.", {}, "No need.", 0),
        (CALL, {"tool_choice": "none"}, CALL, 0),
        (CALL.replace("weather", "nothing"), {}, CALL.replace("weather", "nothing"), 0),
        (f"{CALL}\n{CALL}", {}, None, 2),
    ],
)
def test_calls_that_a_model_chooses_to_make_are_told_apart_from_text(
    said: str, fields: dict[str, Any], content: str | None, calls: int
) -> None:
    with running(FakeEngine(script=lambda *_: said)) as server:
        choice = server.chat("x", tools=[WEATHER], **fields).json()["choices"][0]
        chunks = server.stream("x", tools=[WEATHER], **fields)
    assert choice["message"]["content"] == content
    assert len(choice["message"].get("tool_calls", [])) == calls
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert "".join(d.get("content") or "" for d in deltas) == (content or "")
    starts = [t for d in deltas for t in d.get("tool_calls", []) if "id" in t]
    assert [t["index"] for t in starts] == list(range(calls))


def test_a_strict_tool_is_called_rightly_if_at_all() -> None:
    """The script wants a wrong argument; the grammar overrules it from the first wrong character on."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    wrong = f"Hm {CALL}".replace("Rome", "Paris")
    with running(FakeEngine(script=lambda *_: wrong)) as server:
        loose = server.chat("x", tools=[WEATHER], max_tokens=200).json()["choices"][0]["message"]
        forced = server.chat("x", tools=[strict], max_tokens=200).json()["choices"][0]["message"]
    assert json.loads(loose["tool_calls"][0]["function"]["arguments"])["city"] == "Paris"
    assert satisfies(json.loads(forced["tool_calls"][0]["function"]["arguments"]), OPTIONS)
    assert forced["content"].startswith("Hm")


def test_the_official_client_parses_answers_and_calls(server: Running) -> None:
    class Answer(BaseModel):
        ok: bool
        level: int | None

    parsed = server.openai.chat.completions.parse(
        model="base", messages=[{"role": "user", "content": "x"}], response_format=Answer, seed=3
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)


def test_tools_and_results_reach_the_prompt(server: Running) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    rendered = server.http.post("/apply-template", json={"messages": messages, "tools": [WEATHER]})
    assert "sunny" in rendered.json()["prompt"]
    bad = [messages[0], {**messages[1], "tool_calls": [{"id": "c", "type": "function",
           "function": {"name": "f", "arguments": "{not json"}}]}]  # fmt: skip
    refusal = server.http.post("/v1/chat/completions", json={"model": "base", "messages": bad})
    assert refusal.json()["error"]["param"] == "messages.1.tool_calls.0.function.arguments"
