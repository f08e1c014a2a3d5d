"""Example bodies for the OpenAPI document. A test sends each of them."""

from __future__ import annotations

from typing import Any

_QUESTION = [{"role": "user", "content": "My printer is not printing."}]

EXAMPLES: dict[str, dict[str, Any]] = {
    "ChatRequest": {
        "A question": {"model": "base", "messages": _QUESTION, "max_tokens": 60},
        "An answer by a schema": {
            "model": "base",
            "messages": [{"role": "user", "content": "Name a fruit and its colour."}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {
                    "name": "fruit",
                    "schema": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string", "maxLength": 20},
                            "colour": {"enum": ["red", "green", "yellow"]},
                        },
                        "required": ["name", "colour"],
                        "additionalProperties": False,
                    },
                },
            },
        },
        "A forced call": {
            "model": "base",
            "messages": [{"role": "user", "content": "What is the weather in Rome?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "The weather in a city",
                        "parameters": {
                            "type": "object",
                            "properties": {"city": {"type": "string", "maxLength": 30}},
                            "required": ["city"],
                            "additionalProperties": False,
                        },
                    },
                }
            ],
            "tool_choice": "required",
            "parallel_tool_calls": False,
        },
    },
    "CompletionRequest": {
        "A continuation": {"model": "base", "prompt": "Once upon a time", "max_tokens": 20},
        "The likelihood of a text": {
            "model": "base",
            "prompt": "The sky is blue.",
            "max_tokens": 1,
            "echo": True,
            "logprobs": 1,
        },
    },
    "ResponseRequest": {
        "A question": {"model": "base", "input": "Say hello.", "max_output_tokens": 20},
    },
    "TokenizeRequest": {
        "A text": {"model": "base", "prompt": "Hello, world"},
        "A conversation": {"model": "base", "messages": _QUESTION},
    },
    "DetokenizeRequest": {"Some tokens": {"model": "base", "tokens": [1, 2, 3]}},
    "ApplyTemplateRequest": {"A question": {"model": "base", "messages": _QUESTION}},
}
