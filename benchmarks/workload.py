"""What is asked: chats with realistic prompts of about 30 to 600 tokens, the same sequence for every server.

It knows no server and no tokenizer; lengths are estimated from characters, and the servers' own counts are reported.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PROMPTS_FILE = Path(__file__).with_name("prompts.json")
CHARACTERS_PER_TOKEN = 4.2  # English under byte-pair vocabularies of 49,000 to 128,000
MIN_CHARACTERS = int(30 * CHARACTERS_PER_TOKEN)
MAX_CHARACTERS = int(600 * CHARACTERS_PER_TOKEN)
TURNS = 3
SINGLES_PER_CHAT = 5
BLOCK_REQUESTS = TURNS + SINGLES_PER_CHAT


@dataclass(frozen=True, slots=True)
class Chat:
    """One user's chat: turns are asked one after the other, with the server's own answers between them."""

    system: str | None
    turns: tuple[str, ...]


class Workload:
    """An endless sequence of chats, the same for the same seed and source.

    Every chat begins differently, so that no server answers a prompt from what it computed for another; only the
    system prompt that the chats of several turns share may be reused, as it would be in use.
    """

    def __init__(self, seed: int, folder: Path | None = None) -> None:
        self._random = random.Random(seed)
        prompts = json.loads(PROMPTS_FILE.read_text("utf-8"))
        self.system: str = prompts["system"]
        self._follow_ups: list[str] = prompts["follow_ups"]
        self._single: Callable[[], str] = (
            _written(prompts, self._random) if folder is None else _recorded(folder, self._random)
        )
        self._asked = 0

    def take(self, requests: int) -> list[Chat]:
        """The next chats, in whole blocks of BLOCK_REQUESTS, with at least so many requests in them.

        The long chats come first, so that a run does not end with one of them alone.
        """
        blocks = -(-requests // BLOCK_REQUESTS)
        long = [self.conversation(TURNS) for _ in range(blocks)]
        return long + [Chat(None, (self._next(),)) for _ in range(blocks * SINGLES_PER_CHAT)]

    def conversation(self, turns: int) -> Chat:
        """A chat of several turns under the shared system prompt."""
        follow_ups = self._random.sample(self._follow_ups, turns - 1)
        return Chat(self.system, (self._next(), *follow_ups))

    def _next(self) -> str:
        self._asked += 1
        # First, so that nothing behind it can be shared with another prompt.
        return f"Request {self._random.randrange(10**6):06d}-{self._asked}. {self._single()}"


def _written(prompts: dict[str, list[str]], source: random.Random) -> Callable[[], str]:
    """Prompts put together from the file that comes with the benchmark."""

    def single() -> str:
        if source.random() < 0.4:
            return source.choice(prompts["questions"])
        passages = source.sample(prompts["passages"], source.choice((1, 1, 2, 3)))
        return "\n\n".join([source.choice(prompts["tasks"]), *passages])

    return single


def _recorded(folder: Path, source: random.Random) -> Callable[[], str]:
    """First questions from a folder of ShareGPT and instruction rows (*.jsonl), each once before any comes again.

    Raises FileNotFoundError if the folder holds none.
    """
    texts = [text for file in sorted(folder.glob("*.jsonl")) for text in _first_questions(file)]
    texts = sorted(
        {text for text in texts if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS},
        key=lambda text: (len(text), text),
    )
    if not texts:
        raise FileNotFoundError(f"{folder} holds no *.jsonl file with questions of a usable length")

    def shuffled() -> Iterator[str]:
        while True:
            # Most of what people ask first is short: every second one is of the longest quarter.
            middle = len(texts) * 3 // 4
            short, long = texts[:middle], texts[middle:]
            source.shuffle(short)
            source.shuffle(long)
            for pair in zip(short, long, strict=False):
                yield from pair

    chosen = shuffled()
    return lambda: next(chosen)


def _first_questions(file: Path) -> Iterator[str]:
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        if "instruction" in row:
            yield row["instruction"]
        else:
            yield next(t["value"] for t in row["conversations"] if t["from"] == "human")
