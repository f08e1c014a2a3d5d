from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.drafts import MAX_DRAFTS, Drafter, break_even


def slow_guess(tokens: list[int], count: int) -> list[int]:
    """By the definition: what followed the most recent earlier occurrence of the last three tokens, else of two."""
    for length in (3, 2):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[-length:] and len(tokens) > length:
                text = list(tokens)
                for at in range(end, end + count):
                    text.append(text[at])
                return text[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.lists(st.integers(1, 6)))
def test_the_guess_is_what_followed_the_last_time(tokens: list[int], steps: list[int]) -> None:
    """However the text grew."""
    text = tokens[:1]
    drafter = Drafter(text)
    for step in [*steps, len(tokens)]:
        assert drafter.propose(3, threshold=0.0) == slow_guess(text, 3)
        text += tokens[len(text) : len(text) + step]


def run(text: list[int], next_tokens: list[int], num_rows: int) -> tuple[int, int, int]:
    """(steps, drafted, right) of an answer that says next_tokens."""
    known = list(text)
    drafter = Drafter(known)
    steps = drafted = right = 0
    at = 0
    while at < len(next_tokens):
        drafts = drafter.propose(MAX_DRAFTS, break_even(num_rows))
        accepted = 0
        while accepted < len(drafts) and next_tokens[at : at + 1] == [drafts[accepted]]:
            accepted += 1
            at += 1
        known += next_tokens[len(known) - len(text) : at]
        known += next_tokens[at : at + 1]
        at += 1
        if drafts:
            drafter.learn(len(drafts), accepted)
        steps, drafted, right = steps + 1, drafted + len(drafts), right + accepted
    return steps, drafted, right


def test_text_that_repeats_itself_takes_a_fraction_of_the_steps() -> None:
    sentence = list(range(100, 140))
    steps, drafted, right = run(sentence, sentence * 5, num_rows=1)
    assert steps < 0.35 * len(sentence * 5)
    assert right > 0.9 * drafted


def test_where_guesses_are_wrong_they_are_given_up_and_tried_ever_more_rarely() -> None:
    # Each pair occurs again and again, and is followed by something else each time.
    text = [t for i in range(1000) for t in (1, 2, 1000 + i)]
    _, drafted, right = run([1, 2], text, num_rows=1)
    assert right == 0
    assert 0 < drafted < 40
    _, first_half, _ = run([1, 2], text[:1500], num_rows=1)
    assert drafted - first_half < first_half / 2


def test_guesses_come_back_when_the_text_becomes_predictable() -> None:
    # Neither two tokens foretell the third, nor three the fourth.
    noise = [t for i in range(200) for t in (1, 2, 3 + i % 2, 1000 + i)]
    sentence = list(range(100, 130))
    _, _, right = run([1, 2, 3], noise + sentence * 20, num_rows=1)
    assert right > 200


@given(st.integers(1, 63))
def test_the_more_rows_share_a_step_the_surer_a_draft_must_be(num_rows: int) -> None:
    assert 0 < break_even(num_rows) < break_even(num_rows + 1) < 1
    drafter = Drafter([1, 2, 3, 1, 2, 3])
    some = len(drafter.propose(MAX_DRAFTS, break_even(num_rows)))
    more = len(Drafter([1, 2, 3, 1, 2, 3]).propose(MAX_DRAFTS, break_even(num_rows + 1)))
    assert more <= some
