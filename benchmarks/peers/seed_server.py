"""The seed's way: PEFT's model, not merged, transformers' generate under a lock, one answer at a time.

usage: seed_server.py PORT THREADS MODEL [ADAPTER]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from threading import Thread

import torch
from chat_app import chat_app, serve
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


def main() -> None:
    port, threads, folder, *adapter = sys.argv[1:]
    torch.set_num_threads(int(threads))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter[0])
    model.eval()
    lock = asyncio.Lock()

    async def answer(
        messages: list[dict[str, str]], _: str, max_tokens: int
    ) -> AsyncIterator[str | tuple[int, int]]:
        async with lock:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
            outputs = []
            thread = Thread(
                target=lambda: outputs.append(
                    model.generate(
                        **inputs, max_new_tokens=max_tokens, do_sample=False, streamer=streamer
                    )
                )
            )
            thread.start()
            pieces = iter(streamer)
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
            thread.join()
            prompt = inputs["input_ids"].shape[1]
            yield prompt, outputs[0].shape[1] - prompt

    serve(chat_app(answer), int(port))


main()
