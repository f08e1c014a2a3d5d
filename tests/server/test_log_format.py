"""Whatever is logged, a line stays a line, and nothing that a caller writes can pass for another."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.log_format import CONTINUATION, JsonFormatter, TextFormatter
from tests.conftest import ROOT

FORGED = "x\n2026-11-25T00:00:00.000Z INFO lorachat: forged\r\x1b[31m\u2028\x85end"


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("lorachat.api", logging.INFO, "", 0, "%s", (message,), None)
    made.__dict__.update(extra)
    return made


def raised(message: str) -> logging.LogRecord:
    try:
        raise ValueError(message)
    except ValueError:
        made = record("it failed")
        made.exc_info = sys.exc_info()
        return made


@pytest.mark.parametrize("fields", [{}, {"model": FORGED}])
def test_a_line_break_in_a_value_makes_no_second_line(fields: dict[str, str]) -> None:
    for formatter in (TextFormatter(), JsonFormatter()):
        line = formatter.format(record(FORGED, fields=fields))
        assert len(line.splitlines()) == 1
        assert line.isprintable()


@given(st.text(), st.text())
def test_any_text_stays_one_line_and_comes_back_whole_from_json(message: str, value: str) -> None:
    made = record(message, fields={"value": value, "number": 3})
    text = TextFormatter().format(made)
    assert len(text.splitlines()) == 1
    line = JsonFormatter().format(made)
    assert len(line.splitlines()) == 1
    parsed = json.loads(line)
    assert (parsed["message"], parsed["value"], parsed["number"]) == (message, value, 3)
    assert (parsed["level"], parsed["logger"]) == ("info", "lorachat.api")


def test_fields_cannot_take_the_place_of_what_the_server_says() -> None:
    line = json.loads(JsonFormatter().format(record("real", fields={"level": "x", "message": "y"})))
    assert (line["level"], line["message"]) == ("info", "real")


def test_a_traceback_is_one_value_in_json_and_marked_lines_in_text() -> None:
    line = JsonFormatter().format(raised(FORGED))
    assert len(line.splitlines()) == 1
    assert "ValueError" in json.loads(line)["exception"]
    first, *others = TextFormatter().format(raised(FORGED)).splitlines()
    assert first.endswith("it failed")
    assert others
    assert all(other.startswith(CONTINUATION) for other in others)


def test_values_in_the_text_form_can_be_told_from_each_other() -> None:
    line = TextFormatter().format(record("m", fields={"a": "x b=1", "c": 2.5, "d": "", "e": "ok"}))
    assert line.endswith('lorachat.api: m a="x b=1" c=2.5 d="" e=ok')


def test_what_libraries_warn_of_and_what_nobody_caught_has_the_same_form() -> None:
    code = (
        "import logging, threading, warnings\n"
        "from server.log_format import set_up\n"
        "set_up('json', 'info')\n"
        "logging.getLogger('uvicorn.error').info('Started server process [%d]', 1)\n"
        "warnings.warn('old\\nway')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n"
        "raise RuntimeError('the\\nend')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["uvicorn.error", "py.warnings", "lorachat", "lorachat"]  # fmt: skip
    assert "ZeroDivisionError" in lines[2]["exception"]
    assert "RuntimeError: the\nend" in lines[3]["exception"]
    assert done.returncode == 1
