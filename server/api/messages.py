"""Wire messages -> the server's own, with the checks that need more than one field."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import from_json

from server.api.schemas.chat import ChatMessage, MessageToolCall
from server.errors import InvalidRequestError
from server.types import Message, ToolCall


def to_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Raises InvalidRequestError for turns that cannot stand where they stand."""
    calls: set[str] = set()
    result = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if message.content is None and not (message.role == "assistant" and message.tool_calls):
            raise InvalidRequestError(f"'{where}.content' is required.", param=f"{where}.content")
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequestError(
                f"'{where}.tool_calls': only a message with role 'assistant' can make calls.",
                param=f"{where}.tool_calls",
            )
        if message.role == "tool":
            _check_result(message, where, calls)
        result.append(
            Message(
                # "developer" is OpenAI's newer word for the same thing; templates know only "system".
                role="system" if message.role == "developer" else message.role,
                content=_text(message),
                name=message.name,
                tool_calls=tuple(
                    _call(call, f"{where}.tool_calls.{number}")
                    for number, call in enumerate(message.tool_calls or ())
                ),
                tool_call_id=message.tool_call_id,
            )
        )
        calls.update(call.id for call in message.tool_calls or ())
    return result


def _check_result(message: ChatMessage, where: str, calls: set[str]) -> None:
    if message.tool_call_id is None:
        raise InvalidRequestError(
            f"'{where}.tool_call_id' is required.", param=f"{where}.tool_call_id"
        )
    if message.tool_call_id not in calls:
        raise InvalidRequestError(
            f"'{where}': messages with role 'tool' must be a response to a preceding message with"
            " 'tool_calls', and name the call in 'tool_call_id'.",
            param=f"{where}.tool_call_id",
        )


def _text(message: ChatMessage) -> str:
    content = message.content
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _call(call: MessageToolCall, where: str) -> ToolCall:
    arguments = call.function.arguments or "{}"
    try:
        is_object = isinstance(from_json(arguments, allow_inf_nan=False), dict)
    except ValueError:
        is_object = False
    if not is_object:
        name = f"{where}.function.arguments"
        raise InvalidRequestError(f"'{name}' must be a JSON object, as text.", param=name)
    return ToolCall(call.id, call.function.name, arguments)
