"""A grammar over tokens at one point of one answer (llguidance). Fits TokenConstraint."""

from __future__ import annotations

import logging

from llguidance import LLMatcher

log = logging.getLogger("lorachat.grammar")


class GrammarConstraint:
    """param: the field of the request that the grammar comes from. failure: why the grammar gave up on this answer;
    None while it has not.

    End tokens are allowed only where the grammar is complete. A grammar that gives up (its limits per step are
    passed) lets the answer end, and says so: an exception in a step would take neighbours with it.
    """

    def __init__(self, matcher: LLMatcher, end_mask: bytes, param: str) -> None:
        self._matcher = matcher
        self._end_mask = end_mask
        self._mask: bytes | None = None
        self.param = param
        self.failure: str | None = None

    def allowed(self) -> memoryview:
        if self._mask is None:
            self._mask = self._compute()
        return memoryview(self._mask)

    def advance(self, token_id: int) -> None:
        self._mask = None
        if self.failure is None and not self._matcher.consume_token(token_id):
            self._fail()

    @property
    def is_complete(self) -> bool:
        """Whether the text so far satisfies the grammar."""
        return self.failure is None and self._matcher.is_accepting()

    def _compute(self) -> bytes:
        if self.failure is None:
            mask: bytes = self._matcher.compute_bitmask()
            if not self._matcher.is_error():
                return mask
            self._fail()
        return self._end_mask

    def _fail(self) -> None:
        # The library's own message may quote the answer: only its first line's kind is kept.
        reason = str(self._matcher.stop_reason())
        log.warning("a grammar gave up: %s", reason)
        self.failure = reason
