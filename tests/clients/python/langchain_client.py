"""LangChain's ChatOpenAI: invoke, stream, tools, structured output in both of its ways."""

from common import BASE_URL, MODEL, TOOL, Fruit, report
from langchain_openai import ChatOpenAI

llm = ChatOpenAI(
    model=MODEL, base_url=BASE_URL, api_key="unused", max_tokens=60, temperature=0, max_retries=0
)

whole = llm.invoke("Say hello")
assert whole.content
assert whole.usage_metadata["output_tokens"] > 0
assert "".join(chunk.content for chunk in llm.stream("Say hello")) == whole.content

called = llm.bind_tools([TOOL], tool_choice="get_weather").invoke("Weather in Rome?")
assert called.tool_calls[0]["name"] == "get_weather"
assert "city" in called.tool_calls[0]["args"]

for method in ("json_schema", "function_calling"):
    fruit = llm.with_structured_output(Fruit, method=method).invoke("Name a fruit")
    assert isinstance(fruit, Fruit), method

report("invoke, stream, bind_tools, with_structured_output (json_schema, function_calling)")
