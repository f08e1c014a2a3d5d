"""Keeps what people preferred, one JSON object a line, in the form that TRL's preference trainers read.

`prompt`, `chosen` and `rejected` are lists of messages; the last two are null where neither was better.
"""

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from client.types import Message, Sampling

Verdict = Literal["left", "right", "tie", "neither"]


@dataclass(frozen=True, slots=True)
class Vote:
    """One comparison: what both were told, who answered what, and which was better."""

    prompt: Sequence[Message]
    models: tuple[str, str]
    answers: tuple[str, str]
    verdict: Verdict
    sampling: Sampling


class VoteFile:
    """Appends to one file; may be used by several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def add(self, vote: Vote) -> None:
        """Write the vote to disk. Raises OSError if that fails; the file then holds whole lines only."""
        line = json.dumps(_row(vote), ensure_ascii=False) + "\n"
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One write of the whole line, at the end even if another program appends too.
            with self.path.open("ab", buffering=0) as file:
                start = os.fstat(file.fileno()).st_size
                data = line.encode()
                if file.write(data) != len(data):
                    file.truncate(start)
                    raise OSError("the disk is full")


def _row(vote: Vote) -> dict[str, Any]:
    turns = [[{"role": "assistant", "content": answer}] for answer in vote.answers]
    better = {"left": 0, "right": 1}.get(vote.verdict)
    return {
        "prompt": [asdict(message) for message in vote.prompt],
        "chosen": None if better is None else turns[better],
        "rejected": None if better is None else turns[1 - better],
        "verdict": vote.verdict,
        "left": {"model": vote.models[0], "content": vote.answers[0]},
        "right": {"model": vote.models[1], "content": vote.answers[1]},
        "sampling": asdict(vote.sampling),
        "voted": datetime.now(UTC).isoformat(timespec="seconds"),
    }
