"""Pydantic AI: text, streamed text, typed output, a tool; over chat completions and over responses."""

from common import BASE_URL, MODEL, Fruit, report
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=BASE_URL, api_key="unused")
settings = {"max_tokens": 100, "temperature": 0.0}
chat = OpenAIChatModel(MODEL, provider=provider)

assert Agent(chat, model_settings=settings).run_sync("Say hello").output
stream = Agent(chat, model_settings=settings).run_stream_sync("Say hello")
assert "".join(stream.stream_text(delta=True))

typed = Agent(chat, output_type=Fruit, model_settings=settings).run_sync("Name a fruit")
assert isinstance(typed.output, Fruit)
native = Agent(chat, output_type=NativeOutput(Fruit), model_settings=settings).run_sync(
    "Name a fruit"
)
assert isinstance(native.output, Fruit)

responses = OpenAIResponsesModel(MODEL, provider=provider)
assert Agent(responses, model_settings=settings).run_sync("Say hello").output

report("text, stream, typed output by tool and by schema, responses")
