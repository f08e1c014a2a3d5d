"""LiteLLM: completion, stream, tools, its own exceptions by our wording."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = (
    "True"  # before the import, which would look for one on the network
)

import litellm
from common import ASK, BASE_URL, MODEL, TOOL, report

litellm.telemetry = False
options = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": "unused", "num_retries": 0}

whole = litellm.completion(messages=ASK, max_tokens=12, temperature=0, **options)
text = "".join(
    chunk.choices[0].delta.content or ""
    for chunk in litellm.completion(
        messages=ASK, max_tokens=12, temperature=0, stream=True, **options
    )
)
assert text == whole.choices[0].message.content

called = litellm.completion(
    messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=100, **options
)
assert called.choices[0].message.tool_calls[0].function.name == "get_weather"

try:
    litellm.completion(messages=ASK, max_tokens=10**6, **options)
    raise AssertionError("longer than the context")
except litellm.ContextWindowExceededError:
    pass

report("completion, stream, tools, ContextWindowExceededError")
