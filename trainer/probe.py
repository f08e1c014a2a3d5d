"""The probe: what plain PEFT computes on the float32 base for one short text, published so that a server can compare.

A server that applies the adapter otherwise (a wrong scaling, a module bound to another layer, damaged weights) cannot
give the same log-probabilities (docs/contracts.md, section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.record import Probe
from trainer.template import ChatTemplate

FORMAT = "lorachat-probe/1"
MAX_TOKENS = 64  # as many as a server computes between two steps of the answers that run
# Public words: the manifest shows them to whoever reads the volume. With a turn of the assistant's, which is what an
# adapter was trained on.
QUESTION = (
    "Name three rivers of Europe, and say in one sentence where each begins and where it ends."
)
ANSWER = "The Danube rises in the Black Forest and flows into the Black Sea. The Rhine"


def probe_ids(template: ChatTemplate) -> tuple[int, ...]:
    """Token ids of a conversation's beginning, as the frozen template renders it; 64 at most."""
    asked = template.prompt_ids([{"role": "user", "content": QUESTION}])
    answered = template.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    return tuple((asked + answered)[-MAX_TOKENS:])


def peft_probe(base: Any, adapter: Path, token_ids: Sequence[int]) -> Probe:
    """base: the float32 base as transformers loads it, which PEFT then changes. adapter: the folder to publish."""
    from peft import PeftModel  # noqa: PLC0415 (seconds to import)

    model = PeftModel.from_pretrained(base, adapter)
    return Probe(tuple(token_ids), logprobs(model, token_ids))


def logprobs(model: Any, token_ids: Sequence[int]) -> tuple[float, ...]:
    """Natural log-probabilities of token_ids[1:], each given the tokens before it; the softmax in float64."""
    import torch  # noqa: PLC0415 (seconds to import)

    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        ids = torch.tensor([list(token_ids)], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double()
        values = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
    model.train(was_training)
    return tuple(values.tolist())


def manifest_entry(probe: Probe) -> dict[str, Any]:
    """The manifest's `probe`."""
    if probe.absent is not None:
        return {"format": FORMAT, "absent": probe.absent}
    return {
        "format": FORMAT,
        "token_ids": list(probe.token_ids),
        "logprobs": [round(value, 6) for value in probe.logprobs],
    }
