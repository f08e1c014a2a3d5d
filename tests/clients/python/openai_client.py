"""The official Python client: chat, stream, tools, parse helpers, responses, completions, errors."""

import json

import openai
from common import ASK, BASE_URL, MODEL, TOOL, Fruit, report

client = openai.OpenAI(base_url=BASE_URL, api_key="unused", max_retries=0)

assert MODEL in [model.id for model in client.models.list()]

chat = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=16, temperature=0)
stream = client.chat.completions.create(
    model=MODEL,
    messages=ASK,
    max_tokens=16,
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
chunks = list(stream)
text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
assert text == chat.choices[0].message.content
assert chunks[-1].usage.completion_tokens == chat.usage.completion_tokens

with client.chat.completions.stream(
    model=MODEL, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=100,
    parallel_tool_calls=False,
) as events:  # fmt: skip
    for _ in events:
        pass
    final = events.get_final_completion()
call = final.choices[0].message.tool_calls[0]
assert json.loads(call.function.arguments).keys() == {"city"}
assert final.choices[0].finish_reason == "tool_calls"
answer = client.chat.completions.create(
    model=MODEL,
    messages=[
        *ASK,
        final.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ],
    tools=[TOOL],
    max_tokens=8,
)
assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")

parsed = client.chat.completions.parse(
    model=MODEL, messages=ASK, response_format=Fruit, max_tokens=100
)
assert isinstance(parsed.choices[0].message.parsed, Fruit)

assert client.responses.create(model=MODEL, input="Say hello", max_output_tokens=16).output_text
with client.responses.stream(model=MODEL, input="Name a fruit", text_format=Fruit) as events:
    kinds = [event.type for event in events]
    assert isinstance(events.get_final_response().output_parsed, Fruit)
assert kinds[-1] == "response.completed"

scored = client.completions.create(
    model=MODEL, prompt="The sky is blue", echo=True, logprobs=1, max_tokens=1
)
assert len(scored.choices[0].logprobs.tokens) == scored.usage.total_tokens

try:
    client.chat.completions.create(model="gpt-4o", messages=ASK)
    raise AssertionError("no such model")
except openai.NotFoundError as error:
    assert error.code == "model_not_found"

report(
    "chat, stream, tools streamed and answered, parse, responses (+stream, parse), echo+logprobs, errors"
)
