"""Function calls in texts: found whole, however the text is cut, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.tools.calls import CallArguments, CallStart, Text
from server.tools.formats import ToolFormat, format_of
from server.tools.parser import CallParser

HERMES, LLAMA = ToolFormat.HERMES, ToolFormat.LLAMA
NAMES = {"f", "g"}


def read(format_: ToolFormat, pieces: Iterable[str]) -> tuple[str, list[tuple[str, str]]]:
    """(text, calls) of an answer that comes in these pieces."""
    parser = CallParser(format_, NAMES)
    found = [piece for text in pieces for piece in parser.push(text)] + parser.finish()
    calls: list[tuple[str, str]] = []
    for piece in found:
        if isinstance(piece, CallStart):
            assert piece.index == len(calls)
            calls.append((piece.name, ""))
        elif isinstance(piece, CallArguments):
            name, arguments = calls[piece.index]
            calls[piece.index] = (name, arguments + piece.text)
    return "".join(piece.text for piece in found if isinstance(piece, Text)), calls


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


CASES = [
    (HERMES, "Hi there", "Hi there", []),
    (HERMES, hermes("f", '{"x": 1}'), "", [("f", '{"x": 1}')]),
    (
        HERMES,
        f"Let me see.\n{hermes('f', '{}')}\n{hermes('g', '[]')[:-1]}",
        "Let me see.\n" + hermes("g", "[]")[:-1],
        [("f", "{}")],
    ),
    (HERMES, hermes("f", '{"x": "}</tool_call>\\"{"}'), "", [("f", '{"x": "}</tool_call>\\"{"}')]),
    (
        HERMES,
        '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>',
        "",
        [("f", '{"x": 1}')],
    ),
    (
        HERMES,
        '<tool_call>[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]</tool_call>',
        "",
        [("f", "{}"), ("g", "{}")],
    ),
    (HERMES, hermes("unknown", "{}") + " x", hermes("unknown", "{}") + " x", []),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, "<tool_call>no json</tool_call>", "<tool_call>no json</tool_call>", []),
    (HERMES, hermes("f", '{"x": "cut')[: -len("}\n</tool_call>")], "", [("f", '{"x": "cut')]),
    (LLAMA, '{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x": 1}')]),
    (
        LLAMA,
        '\n{"name": "f", "parameters": {}}; {"name": "g", "arguments": {"y": [2]}}',
        "",
        [("f", "{}"), ("g", '{"y": [2]}')],
    ),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    (LLAMA, '{"city": "Rome"} is JSON', '{"city": "Rome"} is JSON', []),
    (LLAMA, '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
    (LLAMA, 'I would {"name": "f"}', 'I would {"name": "f"}', []),
    (
        LLAMA,
        "[f(x=1, y='it]s'), g(z={'a': [true, None]})]",
        "",
        [("f", '{"x": 1, "y": "it]s"}'), ("g", '{"z": {"a": [true, null]}}')],
    ),
    (LLAMA, "[1, 2, 3]", "[1, 2, 3]", []),
    (LLAMA, "[f(__import__('os'))]", "[f(__import__('os'))]", []),
    (LLAMA, "[f(x=open('a'))]", "[f(x=open('a'))]", []),
]


@pytest.mark.parametrize(("format_", "text", "shown", "calls"), CASES)
def test_calls_are_found_and_the_rest_is_text(
    format_: ToolFormat, text: str, shown: str, calls: list[tuple[str, str]]
) -> None:
    assert read(format_, [text]) == (shown, calls)


@given(st.sampled_from(CASES), st.data())
def test_how_an_answer_is_cut_makes_no_difference(
    case: tuple[ToolFormat, str, str, list[tuple[str, str]]], data: st.DataObject
) -> None:
    format_, text, shown, calls = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=len(text))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(format_, pieces) == (shown, calls)


@given(st.sampled_from(list(ToolFormat)), st.text('{}[]()"\\<>/=, tolcafgnmeru_\n:;', max_size=60))
def test_no_text_breaks_the_parser_or_is_lost_without_a_call(
    format_: ToolFormat, text: str
) -> None:
    shown, calls = read(format_, text)
    assert calls or shown == text


ARGUMENTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@given(st.lists(st.tuples(st.sampled_from(sorted(NAMES)), ARGUMENTS), min_size=1, max_size=3))
def test_any_arguments_come_through_in_every_form(
    calls: list[tuple[str, dict[str, object]]],
) -> None:
    texts = {
        HERMES: "\n".join(hermes(name, json.dumps(arguments)) for name, arguments in calls),
        LLAMA: "; ".join(
            json.dumps({"name": name, "parameters": arguments}) for name, arguments in calls
        ),
    }
    for format_, text in texts.items():
        shown, found = read(format_, text)
        assert shown == ""
        assert [(name, json.loads(arguments)) for name, arguments in found] == calls


@given(ARGUMENTS.filter(lambda a: all(key.isidentifier() for key in a)))
def test_pythonic_calls_carry_any_literal(arguments: dict[str, object]) -> None:
    import keyword

    names = [key for key in arguments if not keyword.iskeyword(key) and key.isascii()]
    text = f"[f({', '.join(f'{key}={arguments[key]!r}' for key in names)})]"
    shown, found = read(LLAMA, text)
    assert shown == ""
    assert [json.loads(a) for _, a in found] == [{key: arguments[key] for key in names}]


def test_the_template_decides_the_format() -> None:
    assert format_of("{{ '<tool_call>' }}") is HERMES
    assert format_of('{"name": name, "parameters": x}') is LLAMA
    assert format_of("{{ messages }}") is HERMES
    assert format_of(None) is HERMES
