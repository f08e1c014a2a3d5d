"""Limits of a key: OpenAI's body and headers, and a Retry-After after which it works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.keys import Key, Keyring, digest_of
from server.api.quota import Quota
from server.errors import RateLimitError
from tests.server.api_live import running


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 100), st.lists(st.floats(0, 200), max_size=60))
def test_in_any_minute_no_more_than_the_bucket_and_its_refill_pass(
    limit: int, pauses: list[float]
) -> None:
    clock = Clock()
    quota = Quota(requests_per_minute=limit, clock=clock)
    passed: list[float] = []
    for pause in pauses:
        clock.now += pause
        try:
            quota.take_request()
        except RateLimitError:
            continue
        passed.append(clock.now)
    for index, start in enumerate(passed):
        assert sum(at < start + 60 for at in passed[index:]) <= 2 * limit


@given(st.integers(1, 50), st.integers(1, 5000), st.integers(0, 20_000))
def test_after_the_time_that_was_told_it_works_and_a_second_before_not(
    limit: int, tokens_per_minute: int, spent: int
) -> None:
    for quota, clock, use in _used_up(limit, tokens_per_minute, spent):
        with pytest.raises(RateLimitError) as refusal:
            use(quota)
        assert refusal.value.retry_after >= 1
        clock.now += refusal.value.retry_after
        use(quota)


def _used_up(limit: int, tokens: int, spent: int):  # type: ignore[no-untyped-def]
    clock = Clock()
    requests = Quota(requests_per_minute=limit, clock=clock)
    for _ in range(limit):
        requests.take_request()
    yield requests, clock, Quota.take_request
    clock = Clock()
    overdrawn = Quota(tokens_per_minute=tokens, clock=clock)
    overdrawn.spend_tokens(tokens + spent)
    yield overdrawn, clock, lambda quota: quota.check_tokens(10**6)


def test_a_prompt_of_more_than_a_minutes_tokens_passes_when_the_bucket_is_full() -> None:
    clock = Clock()
    quota = Quota(tokens_per_minute=100, clock=clock)
    quota.check_tokens(5000)
    quota.spend_tokens(5000)
    with pytest.raises(RateLimitError) as refusal:
        quota.check_tokens(1)
    assert refusal.value.retry_after == pytest.approx(4901 * 0.6, abs=1)


def limited(requests: int | None, tokens: int | None) -> Keyring:
    keys = [
        Key("limited", digest_of("limited"), quota=Quota(requests, tokens)),
        Key("free", digest_of("free")),
    ]
    return Keyring((), lambda: keys)


def test_requests_over_the_limit_are_a_429_in_openais_words_and_others_go_on() -> None:
    with running(keyring=limited(2, None)) as server:
        server.http.headers["x-api-key"] = "limited"
        answers = [server.chat() for _ in range(4)]
        assert [a.status_code for a in answers] == [200, 200, 429, 429]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
        assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == [
            "1",
            "0",
            "0",
            "0",
        ]
        assert answers[3].headers["x-ratelimit-reset-requests"].endswith("s")
        assert "x-ratelimit-limit-tokens" not in answers[0].headers
        error = answers[2].json()["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert error["message"].startswith(
            "Rate limit reached for requests per min (RPM): Limit 2, Used 2, Requested 1."
        )
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert server.http.get("/v1/models").status_code == 200, "looking costs nothing"
        server.http.headers["x-api-key"] = "free"
        free = server.chat()
        assert free.status_code == 200
        assert not [name for name in free.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_of_prompt_and_answer_count_as_they_are_used(stream: bool) -> None:
    with running(keyring=limited(None, 30)) as server:
        server.http.headers["x-api-key"] = "limited"
        first = server.chat("x" * 10, stream=stream)  # 10 of the prompt, 11 of the answer
        assert first.status_code == 200
        second = server.chat("x" * 8)
        assert second.status_code == 200
        third = server.chat("x" * 8)
        assert third.status_code == 429
        assert third.json()["error"]["type"] == "tokens"
        assert third.headers["x-ratelimit-remaining-tokens"] == "0"
        assert int(third.headers["retry-after"]) > 1
        assert len(server.engine.requests) == 2, "nothing was queued"
