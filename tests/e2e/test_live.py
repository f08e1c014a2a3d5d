"""Users' own clients against the real server with the embedded model and an adapter the trainer made."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import NAME, LiveServer, live_server, python

pytestmark = pytest.mark.model

QUESTIONS = ["My computer won't start", "Who was Ada Lovelace?", "List three fruits."]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)


def ask(client: openai.OpenAI, model: str, question: str, **options: Any) -> str:
    completion = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], **options
    )
    return completion.choices[0].message.content or ""


def test_the_official_client_streams_from_base_and_adapter(client: openai.OpenAI) -> None:
    listed = [model.id for model in client.models.list()]
    assert listed[:2] == ["base", NAME]
    assert client.models.retrieve(NAME).root == listed[2]
    assert re.fullmatch(rf"{NAME}@\d{{8}}-\d{{6}}-[0-9a-f]{{6}}", listed[2])
    for model in listed:
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Say hello"}],
            temperature=0,
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == ask(client, model, "Say hello", temperature=0, max_tokens=8)
        assert chunks[-2].choices[0].finish_reason in ("stop", "length")
        usage = chunks[-1].usage
        assert usage is not None
        assert 1 <= usage.completion_tokens <= 8
        assert chunks[0].model == (listed[2] if NAME in model else "base")


def test_the_clients_stream_helper_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=NAME, messages=[{"role": "user", "content": "Hi"}], n=2, temperature=0, stop=["."]
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.index for choice in final.choices] == [0, 1]


def test_errors_arrive_as_the_clients_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=f"This server has: base, {NAME}"):
        ask(client, "gpt-4o", "x")
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, "base", "x", temperature=2, max_tokens=100_000)
    assert refusal.value.code == "context_length_exceeded"


def test_a_seed_repeats_an_answer_whoever_else_is_served(client: openai.OpenAI) -> None:
    """The generator is the request's own: neighbours neither share its numbers nor shift them."""
    options = {"seed": 11, "temperature": 1.0, "top_p": 0.9, "max_tokens": 12}
    alone = ask(client, NAME, QUESTIONS[0], **options)
    other = openai.AsyncOpenAI(base_url=client.base_url, api_key="unused", max_retries=0)

    async def crowd() -> list[str]:
        async def one(model: str, question: str, **settings: Any) -> str:
            answer = await other.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], **settings
            )
            return answer.choices[0].message.content or ""

        neighbours = [one("base", q, max_tokens=12, temperature=1.0) for q in QUESTIONS]
        return await asyncio.gather(one(NAME, QUESTIONS[0], **options), *neighbours)

    assert asyncio.run(crowd())[0] == alone


def test_greedy_tokens_equal_transformers_and_peft(
    client: openai.OpenAI, embedded_model: Path, volume: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = (volume / NAME / "latest").resolve()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = AutoModelForCausalLM.from_pretrained(embedded_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(plain, folder)

    def expected(question: str, *, adapter: bool) -> str:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        arguments = {
            "max_new_tokens": 24,
            "do_sample": False,
            "attention_mask": torch.ones_like(ids),
        }
        if adapter:
            out = tuned.generate(input_ids=ids, **arguments)
        else:
            with tuned.disable_adapter():
                out = tuned.generate(input_ids=ids, **arguments)
        return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))

    answers = []
    for question in QUESTIONS:
        for model in ("base", NAME):
            served = ask(client, model, question, temperature=0, max_tokens=24)
            assert served == expected(question, adapter=model == NAME)
            answers.append(served)
    assert answers[::2] != answers[1::2], (
        "the adapter changes nothing, so half of this proves nothing"
    )


def test_a_new_version_is_served_without_a_restart_and_a_removed_one_no_longer(
    client: openai.OpenAI, volume: Path
) -> None:
    version = "20991231-235959-ffffff"
    staged, final = volume / NAME / f".tmp-{version}", volume / NAME / version
    shutil.copytree((volume / NAME / "latest").resolve(), staged)
    manifest = json.loads((staged / "manifest.json").read_text())
    (staged / "manifest.json").write_text(json.dumps({**manifest, "version": version}))

    def listed() -> set[str]:
        return {model.id for model in client.models.list()}

    def until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, listed()
            time.sleep(0.1)

    assert f"{NAME}@{version}" not in listed()
    staged.rename(final)
    try:
        until(lambda: f"{NAME}@{version}" in listed())
        assert ask(client, f"{NAME}@{version}", "Hi", temperature=0, max_tokens=3)
        assert ask(client, NAME, "Hi", temperature=0, max_tokens=3), "latest did not move"
    finally:
        shutil.rmtree(final)
    until(lambda: f"{NAME}@{version}" not in listed())


def test_the_readmes_examples_run_as_they_stand(server: LiveServer) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    ran = 0
    for language, text in blocks:
        code = text.replace("http://127.0.0.1:8000", server.url)
        if language == "bash" and "curl" in code:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            assert "error" not in result.stdout, result.stdout
        elif language == "python":
            result = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert result.returncode == 0, result.stderr
            assert result.stdout.strip()
        else:
            continue
        ran += 1
    assert ran >= 3, "README lost its examples"


def test_every_make_command_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for line in re.findall(r"`(make [a-z][^`\n]*)`", document.read_text("utf-8")):
            words = [w for w in shlex.split(line)[1:] if "=" not in w and w != "…"]
            assert set(words) <= targets, f"{document.name}: {line}"


def test_the_server_imports_no_gpu_library_and_no_trainer(server: LiveServer) -> None:
    maps = Path(f"/proc/{server.pid}/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    loaded = maps.read_text()
    assert "libtorch_cpu" in loaded
    for name in ("libcuda.so", "bitsandbytes", "triton"):
        assert name not in loaded


def test_probes_answer_and_the_log_holds_no_text_of_users(
    client: openai.OpenAI, server: LiveServer
) -> None:
    ask(client, "base", "a secret question", max_tokens=1)
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    log = server.log.read_text()
    assert "outcome=finished" in log
    assert "secret" not in log
    assert os.fspath(Path.home()) not in httpx.get(f"{server.url}/v1/models").text


def test_every_program_call_of_the_documents_is_understood() -> None:
    calls = set()
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        pattern = r"python -m (trainer|server|client|demo)\b((?: [a-z][a-z-]*\b)?)([^`\n#]*)"
        calls |= set(re.findall(pattern, document.read_text("utf-8")))
    assert len(calls) >= 5
    for program, command, rest in calls:
        arguments = [program, *command.split(), "--help"]
        shown = python(*arguments)
        assert shown.returncode == 0, arguments
        for flag in re.findall(r"--[a-z][a-z-]+", rest):
            assert flag in shown.stdout, (arguments, flag)


def test_an_answer_that_outlives_the_drain_ends_with_an_error_and_not_in_the_middle(
    embedded_model: Path, volume: Path, tmp_path: Path
) -> None:
    log = tmp_path / "server.log"
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": "Tell me a long story"}],
        "stream": True,
        "temperature": 2,
        "max_tokens": 4000,
    }
    with live_server(embedded_model, volume, log, "--drain-seconds", "1") as server:
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.pid, signal.SIGTERM)
            events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "unavailable"
    assert "Traceback" not in log.read_text()
