"""A Responses request -> the chat request that means the same."""

from __future__ import annotations

from typing import Any

from server.api.schemas.chat import NOT_HONOURED, ChatRequest
from server.api.schemas.parse import validate
from server.api.schemas.responses import (
    InputItem,
    InputPart,
    ResponseJsonSchema,
    ResponseNamedTool,
    ResponseRequest,
)
from server.errors import InvalidRequestError


def to_chat(request: ResponseRequest) -> ChatRequest:
    """Raises InvalidRequestError naming the fields of the Responses API."""
    fields: dict[str, Any] = {
        **request.sampling(),
        "model": request.model,
        "messages": _messages(request),
        "max_completion_tokens": request.max_output_tokens,
    }
    if request.wants_logprobs:
        fields |= {"logprobs": True, "top_logprobs": request.top_logprobs or 0}
    if request.tools:
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in request.tools
        ]
    choice = request.tool_choice
    if isinstance(choice, ResponseNamedTool):
        fields["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice is not None:
        fields["tool_choice"] = choice
    wanted = request.text.format if request.text is not None else None
    if isinstance(wanted, ResponseJsonSchema):
        schema = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted is not None:
        fields["response_format"] = {"type": wanted.type}
    return validate(ChatRequest, fields, NOT_HONOURED)


def renamed(error: InvalidRequestError) -> InvalidRequestError:
    """The error of a chat request in the words of the Responses API."""
    names = {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "response_format": "text.format",
    }
    param = error.param or ""
    for chat_name, name in names.items():
        if param == chat_name or param.startswith(f"{chat_name}."):
            error.args = (str(error).replace(f"'{param}'", f"'{name}'"),)
            error.param = name
            break
    return error


def _messages(request: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for index, item in enumerate(request.input):
        _add(messages, item, f"input.{index}")
    return messages


def _add(messages: list[dict[str, Any]], item: InputItem, where: str) -> None:
    if item.type == "message":
        role, content = _needed(item.role, f"{where}.role"), item.content
        messages.append({"role": role, "content": _text(_needed(content, f"{where}.content"))})
    elif item.type == "function_call_output":
        messages.append(
            {
                "role": "tool",
                "tool_call_id": _needed(item.call_id, f"{where}.call_id"),
                "content": _text(_needed(item.output, f"{where}.output")),
            }
        )
    else:
        call = {
            "id": _needed(item.call_id, f"{where}.call_id"),
            "type": "function",
            "function": {
                "name": _needed(item.name, f"{where}.name"),
                "arguments": _needed(item.arguments, f"{where}.arguments"),
            },
        }
        # Calls belong to the turn that made them.
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(call)


def _needed(value: Any, name: str) -> Any:
    if value is None:
        raise InvalidRequestError(f"'{name}' is required.", param=name)
    return value


def _text(content: str | list[InputPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
