"""What the soak asks, and the answers that each model gives when it is asked alone."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.workload import Workload

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "words": {"type": "integer"}},
    "required": ["mood", "words"],
    "additionalProperties": False,
}
# (model with its version, number of the ask) -> what each choice says and how it ends.
Answer = tuple[tuple[str, str], ...]
References = dict[tuple[str, int], Answer]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request whose answer is decided: greedy, or drawn with a seed. fields: all of its body but the model."""

    number: int
    fields: dict[str, Any]

    def body(self, model: str, **more: Any) -> dict[str, Any]:
        return {"model": model, **self.fields, **more}


def make_asks(count: int, seed: int) -> list[Ask]:
    """Short and long prompts, half of them under one system prompt; one in four is drawn, one in eight has a schema."""
    chance = random.Random(seed)
    work = Workload(seed)
    asks = []
    for number in range(count):
        messages = [{"role": "user", "content": work.conversation(1).turns[0]}]
        if number % 2:
            messages.insert(0, {"role": "system", "content": work.system})
        # One in six is long: blocks run out as answers grow.
        length = 200 if number % 6 == 1 else chance.randint(4, 40)
        fields: dict[str, Any] = {"messages": messages, "max_tokens": length}
        if number % 4 == 3:
            fields |= {"seed": number, "temperature": 0.9, "top_p": 0.95, "n": 2}
        else:
            fields["temperature"] = 0
        if number % 8 == 4:
            fields["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "mood", "schema": SCHEMA},
            }
        asks.append(Ask(number, fields))
    return asks


def choices(body: dict[str, Any]) -> Answer:
    """What a chat completion says, in the order of its choices."""
    ordered = sorted(body["choices"], key=lambda choice: choice["index"])
    return tuple((choice["message"]["content"], choice["finish_reason"]) for choice in ordered)


def ask_alone(http: httpx.Client, pairs: Iterable[tuple[str, Ask]]) -> References:
    """Each request by itself on an idle server, with nothing of it cached (a salt of its own sees to that)."""
    references = {}
    for model, ask in pairs:
        salt = f"alone-{model}-{ask.number}"
        response = http.post("/v1/chat/completions", json=ask.body(model, cache_salt=salt))
        assert response.status_code == 200, response.text
        references[model, ask.number] = choices(response.json())
    return references
