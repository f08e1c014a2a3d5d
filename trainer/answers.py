"""The table of answers: fixed prompts, answered greedily by the base (adapter off) and by the tuned model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainer.backends.base import Backend
from trainer.config import AnswersConfig
from trainer.record import Answer
from trainer.template import ChatTemplate


def answer_prompts(
    config: AnswersConfig,
    backend: Backend,
    model: Any,
    template: ChatTemplate,
    stop_token_ids: Sequence[int],
    on_answer: Callable[[], None],
) -> tuple[Answer, ...]:
    """One Answer per prompt of the recipe. on_answer is called after each."""
    answers = []
    with backend.generating(model), torch.no_grad():
        for prompt in config.prompts:
            ids = template.prompt_ids([{"role": "user", "content": prompt}])
            with model.disable_adapter():
                base = greedy(model, ids, config.max_new_tokens, stop_token_ids, template)
            tuned = greedy(model, ids, config.max_new_tokens, stop_token_ids, template)
            answers.append(
                Answer(
                    prompt=prompt,
                    base=base[0],
                    tuned=tuned[0],
                    base_tokens=base[1],
                    tuned_tokens=tuned[1],
                    base_finish=base[2],
                    tuned_finish=tuned[2],
                )
            )
            on_answer()
    return tuple(answers)


def greedy(
    model: Any,
    prompt_ids: list[int],
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
    template: ChatTemplate,
) -> tuple[str, int, str]:
    """Text, number of tokens (the stop token not counted) and finish of one answer."""
    from transformers import GenerationConfig  # noqa: PLC0415 (seconds to import)

    inputs = torch.tensor([prompt_ids], device=next(model.parameters()).device)
    # Plain greedy, said in full: what is left out here is taken from the base's own configuration.
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_token_ids),
        pad_token_id=template.tokenizer.pad_token_id,
        use_cache=True,
    )
    output = model.generate(
        input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config
    )
    ids = output[0, len(prompt_ids) :].tolist()
    finish = "length"
    if ids and ids[-1] in stop_token_ids:
        ids.pop()
        finish = "stop"
    text = template.tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip(), len(ids), finish
