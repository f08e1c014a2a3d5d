"""What the terminal keeps on disk: conversations that are saved, and the lines that were typed."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from client.types import Message

_MOST_LINES = 1000
_NAMES = {"system": "System", "user": "You", "assistant": "Assistant"}


def as_text(path: Path, messages: Sequence[Message]) -> str:
    """The conversation in the form that the file's name asks for: JSON messages, or Markdown."""
    if path.suffix.lower() == ".json":
        body = {"messages": [asdict(message) for message in messages]}
        return json.dumps(body, ensure_ascii=False, indent=2) + "\n"
    return "\n".join(f"### {_NAMES[m.role]}\n\n{m.content.strip()}\n" for m in messages)


@contextmanager
def remembered_lines() -> Iterator[None]:
    """Editing and history for `input`, across sessions. Works without where readline is missing."""
    try:
        import readline  # noqa: PLC0415 - its import alone changes input(), also where it is a pipe
    except ImportError:
        yield
        return
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(home) / "lorachat" / "history"
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        readline.set_history_length(_MOST_LINES)
        with suppress(OSError):  # a home that cannot be written: no reason to end with an error
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            readline.write_history_file(path)
