"""A conversation, and how rows of the known kinds become one.

It knows the shapes people publish chat data in; it does not know where rows come from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from trainer.config import Role, SourceConfig
from trainer.errors import DataError

Kind = Literal["sharegpt", "instruction"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}


class Message(TypedDict):
    """One turn."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of a source. `index` is the row's place in its source."""

    source: str
    index: int
    messages: tuple[Message, ...]

    @property
    def prompt(self) -> str:
        """All that is asked before the first answer: what the model may not see from a held-out row."""
        asked = []
        for message in self.messages:
            if message["role"] == "assistant":
                break
            asked.append(message["content"])
        return "\n".join(asked)

    @property
    def text(self) -> str:
        """All turns."""
        return "\n".join(message["content"] for message in self.messages)


def to_conversation(row: Mapping[str, Any], index: int, source: SourceConfig) -> Conversation:
    """The conversation in a row of `source`. Turns after the last answer are left out: nothing is learned from them.

    Raises DataError if the row is not of the source's kind or has a role that no name is known for.
    """
    read = _instruction if source.kind == "instruction" else _sharegpt
    messages = read(row, index, source)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return Conversation(source.name, index, tuple(messages))


def is_well_formed(conversation: Conversation) -> bool:
    """Whether every turn says something, the first is not an answer, and a system turn comes first only."""
    messages = conversation.messages
    if not all(message["content"].strip() for message in messages):
        return False
    if any(message["role"] == "system" for message in messages[1:]):
        return False
    asked = [message for message in messages if message["role"] != "system"]
    return not asked or asked[0]["role"] == "user"


def _sharegpt(row: Mapping[str, Any], index: int, source: SourceConfig) -> list[Message]:
    turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list):
        raise _wrong(row, index, source, "`conversations` (or `messages`), a list of turns")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise _wrong(row, index, source, "turns that are mappings")
        role, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise _wrong(row, index, source, "turns with from/value or role/content, both text")
        known = source.roles.get(role) or ROLES.get(role.lower())
        if known is None:
            raise DataError(
                f"Row {index} of source {source.name} has the role {role!r}, which is not known. Say what it means "
                f"in the recipe: roles: {{{role}: user}} (or system, or assistant) under that source."
            )
        messages.append({"role": known, "content": content})
    return messages


def _instruction(row: Mapping[str, Any], index: int, source: SourceConfig) -> list[Message]:
    texts = {key: row.get(key) for key in ("system", "instruction", "input", "output")}
    if not isinstance(texts["instruction"], str) or not isinstance(texts["output"], str):
        raise _wrong(row, index, source, "`instruction` and `output`, both text")
    messages: list[Message] = []
    if texts["system"]:
        messages.append({"role": "system", "content": str(texts["system"])})
    asked = texts["instruction"]
    if texts["input"]:
        asked = f"{asked}\n\n{texts['input']}"
    messages.append({"role": "user", "content": asked})
    messages.append({"role": "assistant", "content": texts["output"]})
    return messages


def _wrong(row: Mapping[str, Any], index: int, source: SourceConfig, wanted: str) -> DataError:
    return DataError(
        f"Row {index} of source {source.name} (kind {source.kind}) should have {wanted}; "
        f"it has {', '.join(map(str, row)) or 'nothing'}. Is the kind right?"
    )
