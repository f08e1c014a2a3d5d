"""How long the parts of an answer took, in llama-server's words."""

from __future__ import annotations

import time
from collections.abc import Sequence

from server.api.run import Run


def timings_of(runs: Sequence[Run]) -> dict[str, float | int]:
    """Of all runs of a request together: milliseconds, and tokens per second.

    The prompt's time ends when the last of the prompts has been computed, the answer's begins with the first token.
    """
    now = time.perf_counter()
    begun = min(run.clock.submitted for run in runs)
    firsts = [run.clock.first_token or now for run in runs]
    lasts = [run.clock.last_token or first for run, first in zip(runs, firsts, strict=True)]
    prompt = max(max(firsts) - begun, 1e-9)
    answer = max(max(lasts) - min(firsts), 0.0)
    usages = [run.usage for run in runs]
    cached = sum(usage.cached_tokens for usage in usages)
    computed = sum(usage.prompt_tokens for usage in usages) - cached
    completion = sum(usage.completion_tokens for usage in usages)
    drawn = max(
        completion - sum(run.request.n for run in runs), 0
    )  # after the first of each choice
    return {
        "cache_n": cached,
        "prompt_n": computed,
        "prompt_ms": round(prompt * 1e3, 3),
        "prompt_per_second": round(computed / prompt, 3),
        "predicted_n": completion,
        "predicted_ms": round(answer * 1e3, 3),
        "predicted_per_second": round(drawn / answer, 3) if answer > 0 else 0.0,
    }
