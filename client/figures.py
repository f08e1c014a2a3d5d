"""The figures of an answer in words, for the page and the terminal alike."""

from client.types import Done

_ENDINGS = {"stop": "finished", "length": "cut at the limit of new tokens"}


def figures(done: Done) -> list[str]:
    """Short phrases: first token, pace, tokens in and out, and how it ended; unknown ones left out."""
    phrases = []
    timings, usage = done.timings, done.usage
    if timings.first_token_seconds is not None:
        phrases.append(f"first token {seconds(timings.first_token_seconds)}")
    if timings.tokens_per_second is not None:
        phrases.append(f"{timings.tokens_per_second:.1f} tokens/s")
    if usage is not None:
        cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
        phrases.append(f"{usage.prompt_tokens} tokens in{cached}, {usage.completion_tokens} out")
    phrases.append(_ENDINGS.get(done.finish_reason, done.finish_reason))
    return phrases


def seconds(value: float) -> str:
    """A time with as many digits as a person can use."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
