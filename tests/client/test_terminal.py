"""`python -m client chat` as a process: through pipes, and on a pseudo-terminal with Ctrl-C."""

import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from client.blocks import complete_blocks
from client.printable import printable
from client.terminal_markdown import MarkdownStream
from tests.client.fake_server import FakeServer, Script, answer, error, running, wait_until

SCRIPTS = {
    "smalltalk": Script(tuple(answer(["Fine", ", ", "thanks", "."])), 0.005),
    "base": Script(tuple(answer(["Some ", "**bold** ", "words."])), 0.005),
    "slow": Script(tuple(answer(["Word "] * 400)), 0.05),
    "busy": Script(status=429, body=error("full"), headers={"Retry-After": "7"}),
    "rude": Script(tuple(answer(["\x1b]0;owned\x07", "calm\x1b[2J"]))),
}
COMMAND = [sys.executable, "-m", "client", "chat"]


@pytest.fixture
def server():
    models = [("base", "base", None), *((n, f"{n}@1", "base") for n in SCRIPTS if n != "base")]
    with running(FakeServer(SCRIPTS, models=models)) as server:
        yield server


def pipe(url, lines, *flags):
    return subprocess.run(
        [*COMMAND, "--server", url, *flags],
        input=lines,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_each_piped_line_is_answered_in_one_conversation(server):
    done = pipe(server.url, "How are you?\n\nAnd then?\n", "--system", "Be kind.")
    assert (done.stdout, done.stderr, done.returncode) == ("Fine, thanks.\nFine, thanks.\n", "", 0)
    assert [m["content"] for m in server.requests[1]["messages"]] == [
        "Be kind.",
        "How are you?",
        "Fine, thanks.",
        "And then?",
    ]
    assert {request["model"] for request in server.requests} == {"smalltalk"}


def test_commands_change_what_is_asked(server):
    lines = (
        "/model base\n/set temperature 0.3\n/set max_tokens=5\n/system Be brief.\nOne\n/new\nTwo\n"
    )
    done = pipe(server.url, lines)
    assert done.stdout == "Some **bold** words.\n" * 2
    assert done.returncode == 0
    last = server.requests[-1]
    assert (last["model"], last["temperature"], last["max_tokens"]) == ("base", 0.3, 5)
    assert [m["content"] for m in last["messages"]] == ["Be brief.", "Two"]


def test_every_setting_can_be_set(server):
    lines = (
        "/set top_p 0.5\n/set top_k 40\n/set min_p 0.1\n/set repetition_penalty 1.2\n/set seed 7\n"
        "/set stop END|\\n\\n\nHi\n/set seed -\n/set stop -\n/set top_k 0\nHo\n"
    )
    assert pipe(server.url, lines).returncode == 0
    first, second = server.requests
    expected = {"top_p": 0.5, "top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2, "seed": 7}
    assert {name: first[name] for name in expected} == expected
    assert first["stop"] == ["END", "\n\n"]
    assert not {"seed", "stop", "top_k"} & second.keys()


def test_a_comparison_asks_two_and_leaves_the_conversation_as_it_is(server):
    done = pipe(server.url, "One\n/compare base\n/compare base Two?\n/compare nobody\nThree\n")
    assert "Some bold words." in done.stdout
    assert "no model named" in done.stdout
    compared = [[m["content"] for m in request["messages"]] for request in server.requests[1:5]]
    assert compared == [["One"]] * 2 + [["One", "Fine, thanks.", "Two?"]] * 2
    assert {request["model"] for request in server.requests[1:5]} == {"smalltalk", "base"}
    last = [m["content"] for m in server.requests[-1]["messages"]]
    assert last == ["One", "Fine, thanks.", "Three"]


def test_conversations_are_taken_back_and_saved(server, tmp_path):
    lines = (
        f"One\nTwo\n/undo\n/save {tmp_path}/a.md\n/save {tmp_path}/a.json\n/save {tmp_path}/a.md\n"
    )
    done = pipe(server.url, lines, "--system", "Be kind.")
    assert (tmp_path / "a.md").read_text() == (
        "### System\n\nBe kind.\n\n### You\n\nOne\n\n### Assistant\n\nFine, thanks.\n"
    )
    saved = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert saved[1:] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Fine, thanks."},
    ]
    assert "exists already" in done.stderr


def ask(url, *arguments, stdin=""):
    return subprocess.run(
        [sys.executable, "-m", "client", "ask", "--server", url, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ask_prints_the_answer_and_takes_its_question_from_either_side(server):
    done = ask(server.url, "How are you?", "--temperature", "0", "--stop", "END")
    assert (done.stdout, done.stderr, done.returncode) == ("Fine, thanks.\n", "", 0)
    assert server.requests[-1]["stop"] == ["END"]
    ask(server.url, "Summarise:", "-", stdin="A text.\n")
    assert server.requests[-1]["messages"] == [{"role": "user", "content": "Summarise:\n\nA text."}]
    ask(server.url, stdin="Only this")
    assert server.requests[-1]["messages"][0]["content"] == "Only this"
    told = json.loads(ask(server.url, "Hi", "--json", "--model", "base").stdout)
    assert (told["model"], told["content"]) == ("m", "Some **bold** words.")
    assert told["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "cached_tokens": 4}
    assert told["finish_reason"] == "stop"


def test_ask_ends_without_a_word_when_its_reader_has_enough(server):
    command = [sys.executable, "-m", "client", "ask", "--server", server.url, "--model", "slow"]
    asking = subprocess.Popen(
        [*command, "Go on"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert asking.stdout.read(4) == "Word"
    asking.stdout.close()
    assert asking.wait(30) == 1
    assert asking.stderr.read() == ""
    asking.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["Hi", "--model", "nobody"], 3, "no model named “nobody”"),
        (["Hi", "--model", "busy"], 4, "Try again in 7 s."),
        (["  "], 2, "The question is empty."),
        (["Hi", "--temperature", "3"], 2, "a number from 0 to 2"),
        (["Hi", "--server", "http://127.0.0.1:9"], 1, "No server answers"),
    ],
)
def test_ask_tells_a_script_what_went_wrong(server, arguments, code, words):
    done = ask(server.url, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_failed_line_is_told_on_stderr_and_the_next_one_is_answered(server):
    done = pipe(server.url, "One\n/model base\nTwo\n", "--model", "busy")
    assert done.stdout == "Some **bold** words.\n"
    assert "Try again in 7 s." in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert [m["content"] for m in server.requests[-1]["messages"]] == ["Two"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/sing", "no command /sing"),
        ("/set temperature 3", "a number from 0 to 2; not “3”"),
        ("/set temperature nan", "a number from 0 to 2"),
        ("/set max_tokens 1.5", "a whole number"),
        ("/set mood 1", "temperature, top_p, max_tokens"),
        ("/model nobody", "no model named “nobody”"),
        ("/retry", "no answer yet"),
        ("/undo", "no question yet"),
        ("/save", "no conversation yet"),
        ("/compare", "Say with which model"),
        ("/compare base", "Say with which model"),
    ],
)
def test_wrong_commands_are_explained(server, line, words):
    done = pipe(server.url, f"{line}\n")
    assert words in done.stderr
    assert done.returncode == 1
    assert server.requests == []


def test_a_server_that_is_away_is_one_sentence():
    done = pipe("http://127.0.0.1:9", "Hello\n")
    assert done.stderr.startswith("No server answers at http://127.0.0.1:9.")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 1


def test_control_characters_of_an_answer_do_not_reach_the_terminal(server):
    assert pipe(server.url, "Hi\n", "--model", "rude").stdout == "]0;ownedcalm[2J\n"


def test_help_needs_neither_gradio_nor_http():
    code = (
        "import sys; from client.__main__ import main\n"
        "try: main(['chat', '--help'])\n"
        "except SystemExit: print(sorted({'gradio', 'httpx', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


class PseudoTerminal:
    """The chat on a terminal of its own, typed at and read as a person does."""

    def __init__(self, url, *flags, state=None):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "XDG_STATE_HOME": state or os.devnull}
            os.execv(sys.executable, [*COMMAND, "--server", url, *flags])
        self.seen = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def expect(self, words, seconds=30):
        """Read until the words appear; give what was read, and forget it."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(words, self.seen)):
            assert time.monotonic() < deadline, f"no {words!r} in {self.seen!r}"
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.seen += os.read(self.fd, 4096).decode(errors="replace")
                except OSError as reason:  # Linux: the other side has been closed
                    raise AssertionError(f"ended before {words!r}: {self.seen!r}") from reason
        text, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return text

    def wait(self, seconds=20):
        """The exit status, once the program has left."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    time.sleep(0.05)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError("the program did not leave")


def test_typed_lines_are_remembered_in_the_next_session(server, tmp_path):
    for key in ("How are you?\n", "\x1b[A\n"):  # arrow up
        terminal = PseudoTerminal(server.url, state=str(tmp_path))
        terminal.expect("/help lists the commands")
        terminal.expect("> ")
        terminal.type(key)
        terminal.expect("finished")
        terminal.expect("> ")
        terminal.type("\x04")
        assert terminal.wait() == 0
    asked = [request["messages"][0]["content"] for request in server.requests]
    assert asked == ["How are you?"] * 2


def test_ctrl_c_stops_the_answer_and_not_the_program(server):
    terminal = PseudoTerminal(server.url, "--model", "slow")
    terminal.expect("/help lists the commands")
    terminal.expect("> ")
    terminal.type("Talk\n")
    terminal.expect("Word Word")
    os.kill(terminal.pid, signal.SIGINT)
    terminal.expect("stopped")
    terminal.expect("> ")
    wait_until(lambda: server.gone == ["slow"], "the server to notice")

    terminal.type("/model smalltalk\n")
    terminal.expect("smalltalk answers from now on")
    terminal.type("And you?\n")
    text = terminal.expect("finished")
    assert "Fine, thanks." in text
    assert "tokens/s" in text
    roles = [m["role"] for m in server.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]  # what was said before the stop is kept

    terminal.expect("> ")
    # At the prompt: explained, not obeyed. A signal in the moment before input() waits is seen at the next key only.
    terminal.type("\x03")
    try:
        terminal.expect("Ctrl-D or /exit leaves", seconds=5)
    except AssertionError:
        terminal.type("\x03")
        terminal.expect("Ctrl-D or /exit leaves")
    terminal.expect("> ")  # before it, nobody reads: an end of input would be lost
    terminal.type("\x04")
    assert terminal.wait() == 0


def test_a_server_that_comes_later_is_found():
    server = FakeServer(SCRIPTS)
    with running(server) as first:
        port = int(first.url.rpartition(":")[2])
    terminal = PseudoTerminal(first.url)
    terminal.expect("No server answers")
    with running(server, port):
        terminal.type("Hello\n")
        terminal.expect("Fine, thanks.")
        terminal.type("/exit\n")
        assert terminal.wait() == 0


MARKDOWN = """\
# Title

A paragraph that is
two lines long.

1. one

   still one

2. two

```python
a = 1

b = 2
```

The end."""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_blocks_are_cut_at_the_same_places_however_the_text_came(size):
    blocks, pending = [], ""
    for start in range(0, len(MARKDOWN), size):
        pending += MARKDOWN[start : start + size]
        end = complete_blocks(pending)
        blocks.append(pending[:end])
        pending = pending[end:]
    assert "".join([*blocks, pending]) == MARKDOWN
    assert pending == "The end."
    code = "```python\na = 1\n\nb = 2\n```\n\n"
    item = "1. one\n\n   still one\n\n"
    if size == 1:
        assert [block for block in blocks if block] == [
            "# Title\n\n",
            "A paragraph that is\ntwo lines long.\n\n",
            item,
            "2. two\n\n",
            code,
        ]


def test_an_answer_is_printed_once():
    console = Console(width=60, force_terminal=False, record=True, file=io.StringIO())
    with MarkdownStream(console, "model") as stream:
        for char in MARKDOWN:
            stream.feed(char)
    text = console.export_text()
    for words in ("Title", "two lines long", "still one", "2 two", "b = 2", "The end."):
        assert text.count(words) == 1, (words, text)


def test_printable_keeps_text():
    assert printable("tab\tline\nnaïve 数 🙂\x00\x1b[31m\r\x9b") == "tab\tline\nnaïve 数 🙂[31m"
