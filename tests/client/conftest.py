"""One browser, one scripted server and one web client for the tests of the page."""

import pytest

from tests.client.fake_server import FakeServer, Script, answer, error, running
from tests.client.pages import Watched, launched_browser, web_client

CODE = "Look:\n\n```python\nprint(1 < 2)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
SCRIPTS = {
    "base": Script(tuple(answer([f"word{n} " for n in range(12)])), 0.1),
    "smalltalk": Script(tuple(answer(["Check ", "the **power** ", "cable."])), 0.05),
    "endless": Script(tuple(answer(["more "] * 300)), 0.1),
    "thinking": Script((), ending="hang"),
    "busy": Script(status=429, body=error("queue full"), headers={"Retry-After": "7"}),
    "old": Script(status=400, body=error("'top_k' is not supported by this server.")),
    "cut": Script(tuple(answer(["Half an ", "answer", "…"])[:2]), 0.05, ending="cut"),
    "spy": Script(tuple(answer(["![](http://192.0.2.1/?secret)", " <b>end</b>"]))),
    "coder": Script(tuple(answer(CODE.splitlines(keepends=True)))),
}
METRICS = """# HELP vllm:num_requests_running Answers being computed.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="base"} 2
vllm:num_requests_running{model_name="smalltalk"} 1
vllm:num_requests_waiting 4
vllm:kv_cache_usage_perc 0.25
vllm:prompt_tokens_total 1000
vllm:generation_tokens_total 5000
vllm:prefix_cache_queries_total 200
vllm:prefix_cache_hits_total 150
vllm:num_preemptions_total 3
process_resident_memory_bytes 1.5e9
vllm:time_to_first_token_seconds_bucket{le="0.5"} 50
vllm:time_to_first_token_seconds_bucket{le="1.0"} 90
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 100
"""


@pytest.fixture(scope="module")
def browser():
    with launched_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    models = [("base", "base", None), ("smalltalk", "smalltalk@2", "base")]
    models += [(name, f"{name}@1", "base") for name in SCRIPTS if name not in {"base", "smalltalk"}]
    with running(FakeServer(SCRIPTS, models=models, metrics=METRICS)) as server:
        yield server


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return tmp_path_factory.mktemp("votes") / "votes.jsonl"


@pytest.fixture(scope="module")
def address(browser, server, votes):
    with web_client(server.url, "--votes", str(votes)) as address:
        yield address


@pytest.fixture(scope="module")
def context(browser):
    """What the pages share, so that only the first has to load Gradio's scripts."""
    return browser.new_context(permissions=["clipboard-read", "clipboard-write"])


@pytest.fixture
def watched(context):
    """Opens pages, and checks what they logged and asked for when the test is over."""
    watched = Watched(context)
    yield watched
    watched.check()


@pytest.fixture
def open_page(watched):
    return watched.open
