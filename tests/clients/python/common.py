"""What the client scripts share: the server's address, a question, a tool, a schema."""

import os
from typing import Annotated, Literal

from pydantic import BaseModel, Field

BASE_URL = os.environ["LORACHAT_BASE_URL"]
MODEL = "base"
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


class Fruit(BaseModel):
    """A fruit."""

    name: Annotated[str, Field(max_length=20)]
    colour: Literal["red", "green", "yellow"]


def report(exercised: str) -> None:
    """The line that the driver shows."""
    print(f"EXERCISED {exercised}")
