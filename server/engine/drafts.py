"""Guesses the next tokens of one sequence from its own text: prompt lookup, speculation without a second model.

The last tokens are looked up in the prompt and the answer so far, and what followed them the last time is the guess
(n-gram lookup; the test of the guesses is that of arXiv:2211.17192 for a draft that is certain of itself). Guesses
cannot change an answer, only its pace. So all that is decided here is whether they pay.
"""

from __future__ import annotations

# What one more token costs a step, as a share of what a step of one token costs.
DRAFT_COST = 0.08
MAX_DRAFTS = 4
_WEIGHT = 0.08  # of the newest draft in the estimate of how many are right
_MIN_BACKOFF, _MAX_BACKOFF = 16, 256  # steps without a draft, until one is tried again


def break_even(num_rows: int) -> float:
    """How probable a draft must be to pay in a step of num_rows rows that draw one token each.

    A step of t tokens costs 1 + c·(t - 1). One more token, right with probability p, raises the tokens per cost of
    all rows together if p / num_rows > c / (1 + c·(num_rows - 1)).
    """
    return num_rows * DRAFT_COST / (1 + DRAFT_COST * (num_rows - 1))


class Drafter:
    """token_ids: the sequence's own list of prompt and answer, which grows."""

    def __init__(self, token_ids: list[int]) -> None:
        self._token_ids = token_ids
        # Where the text went on after the last occurrence of an n-gram that ends before the last token.
        self._after: dict[int, dict[tuple[int, ...], int]] = {3: {}, 2: {}}
        self._num_indexed = 0
        # The probability that a draft is right if the one before was, by the length of the n-gram it came from.
        self._rate = {3: 0.5, 2: 0.3}
        self._length = 3  # of the n-gram of the last proposal
        self._steps_without = 0
        self._backoff = _MIN_BACKOFF

    def propose(self, limit: int, threshold: float) -> list[int]:
        """At most `limit` tokens that may follow; only such as are right with a probability above threshold.

        Where none is, one is tried now and then, ever more rarely: text changes.
        """
        self._index()
        self._steps_without += 1
        for length, after in self._after.items():
            position = after.get(tuple(self._token_ids[-length:]))
            if position is None:
                continue
            count = _paying(self._rate[length], threshold, min(limit, MAX_DRAFTS))
            if count == 0 and limit > 0 and self._steps_without > self._backoff:
                count = 1
            if count:
                self._length = length
                return self._copy(position, count)
        return []

    def learn(self, num_drafted: int, num_right: int) -> None:
        """How the last proposal fared."""
        self._steps_without = 0
        rate = self._rate[self._length]
        for _ in range(num_right):
            rate += _WEIGHT * (1 - rate)
        if num_right < num_drafted:  # the first wrong one; those behind it were not looked at
            rate -= _WEIGHT * rate
        self._rate[self._length] = rate
        self._backoff = _MIN_BACKOFF if num_right else min(2 * self._backoff, _MAX_BACKOFF)

    def _copy(self, position: int, count: int) -> list[int]:
        tokens, known = self._token_ids, len(self._token_ids)
        drafts: list[int] = []
        for at in range(position, position + count):
            # A text that repeats itself goes on into its own guess.
            drafts.append(tokens[at] if at < known else drafts[at - known])
        return drafts

    def _index(self) -> None:
        """Take in the tokens that came since the last time. The n-gram at the very end has no next token yet."""
        tokens, begin, end = self._token_ids, self._num_indexed, len(self._token_ids) - 1
        if end <= begin:
            return
        for length, after in self._after.items():
            first = max(0, begin - length + 1)
            window = tokens[first:end]
            grams = zip(*(window[i:] for i in range(length)), strict=False)
            after.update(zip(grams, range(first + length, end + 1), strict=False))
        self._num_indexed = end


def _paying(rate: float, threshold: float, limit: int) -> int:
    """How many drafts pay: the k-th is right only if all before it are, so with probability rate to the k."""
    count, probability = 0, rate
    while count < limit and probability > threshold:
        count += 1
        probability *= rate
    return count
