"""OpenVINO GenAI's continuous batching behind HTTP: one thread steps the pipeline, all requests share its batches.

usage: openvino_server.py PORT THREADS MODEL [ADAPTER_SAFETENSORS]
With an adapter every request uses it.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator
from threading import Thread
from typing import Any

import numpy
import openvino
import openvino_genai as genai
from chat_app import chat_app, serve
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer

CACHE_GB = 2


def main() -> None:
    port, threads, folder, *adapter = sys.argv[1:]
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.enable_prefix_caching = True
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": int(threads),
        # Its defaults here are bfloat16 and an 8-bit cache.
        "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": "f32",
    }
    adapters = None
    if adapter:
        adapters = genai.AdapterConfig(genai.Adapter(adapter[0]))
        properties["adapters"] = adapters
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", properties)
    if adapters is not None:
        # add_request ignores an adapter until one generate() has applied it.
        first = genai.GenerationConfig(max_new_tokens=2, adapters=adapters)
        pipeline.generate(["Hello"], [first])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def answer(
        messages: list[dict[str, str]], _: str, max_tokens: int
    ) -> AsyncIterator[str | tuple[int, int]]:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        outbox: asyncio.Queue[list[int] | None] = asyncio.Queue()
        config = genai.GenerationConfig(
            max_new_tokens=max_tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id
        )
        if adapters is not None:
            config.adapters = adapters
        inbox.put((ids, config, outbox, asyncio.get_running_loop()))
        decoder = DecodeStream(skip_special_tokens=True)
        count = 0
        while (new := await outbox.get()) is not None:
            count += len(new)
            pieces = [decoder.step(tokenizer.backend_tokenizer, token) for token in new]
            yield "".join(piece for piece in pieces if piece)
        yield len(ids), count

    Thread(target=_run, args=(pipeline, inbox), daemon=True).start()
    serve(chat_app(answer), int(port))


def _run(pipeline: Any, inbox: queue.SimpleQueue[Any]) -> None:
    running: list[Any] = []
    number = 0
    while True:
        while not running or not inbox.empty():
            ids, config, outbox, loop = inbox.get()
            tensor = openvino.Tensor(numpy.array([ids], dtype=numpy.int64))
            running.append((pipeline.add_request(number, tensor, config), outbox, loop))
            number += 1
        pipeline.step()
        for entry in list(running):
            handle, outbox, loop = entry
            if handle.can_read():
                tokens = [t for output in handle.read().values() for t in output.generated_ids]
                loop.call_soon_threadsafe(outbox.put_nowait, tokens)
            if handle.get_status() != genai.GenerationStatus.RUNNING and not handle.can_read():
                loop.call_soon_threadsafe(outbox.put_nowait, None)
                running.remove(entry)


main()
