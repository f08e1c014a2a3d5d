"""Grammars -> constraints: compiled off the event loop, within limits, and kept for the next request.

The library is llguidance (docs/decisions/0009-structured-output.md). It compiles lazily: what is expensive about a
grammar is paid in the steps that need it, and bounded there as well.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.errors import InvalidRequestError, OverloadedError
from server.grammar.constraint import GrammarConstraint
from server.grammar.refusal import reason_of
from server.grammar.worker import Worker

COMPILE_SECONDS = 5.0
MAX_KEPT = 256
# About 20 ms of lexer work and 5 ms of parser work per token at most; the library's own defaults for the rest.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    verbose_errors=False,
)

# Scope, vocabulary, tokens that may end an answer, grammar.
_Key = tuple[str, str, frozenset[int], str]


class Vocabulary(Protocol):
    """What the compiler needs of a tokenizer."""

    @property
    def key(self) -> str: ...

    def to_json(self) -> str: ...


class GrammarCompiler:
    """vocab_size: rows of the model's embedding. compile() belongs to one event loop."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._tokenizers: OrderedDict[tuple[str, frozenset[int]], LLTokenizer] = OrderedDict()
        self._matchers: OrderedDict[_Key, LLMatcher] = OrderedDict()
        # One, because the model needs the other cores; its own, because there are schemas that the library never
        # comes back from: they may hold up new grammars, and not the prompts that others' threads tokenise.
        self._worker = Worker("grammar")

    async def compile(
        self,
        grammar: str,
        vocabulary: Vocabulary,
        end_ids: Collection[int],
        param: str,
        scope: str = "",
    ) -> Callable[[], GrammarConstraint]:
        """What makes the constraint of one choice.

        grammar: Lark in llguidance's dialect. end_ids: allowed where the grammar is complete, and only there.
        scope: what is kept is found again only in the same one, lest the time tell what others have sent.
        Raises InvalidRequestError (param) for a grammar that is wrong or too large, OverloadedError if it, or
        others' grammars, keep the compiler busy.
        """
        ends = frozenset(end_ids)
        # The first time it is made from the whole vocabulary.
        key = (scope, await asyncio.to_thread(lambda: vocabulary.key), ends, grammar)
        matcher = self._matchers.get(key)
        if matcher is None:
            try:
                async with asyncio.timeout(COMPILE_SECONDS):
                    matcher = await asyncio.wrap_future(
                        self._worker.submit(lambda: self._compile(key, vocabulary, param))
                    )
            except TimeoutError:
                raise OverloadedError(
                    f"'{param}' could not be compiled within {COMPILE_SECONDS:g} seconds. Try again, or send a"
                    " simpler schema.",
                    retry_after=5,
                ) from None
            self._matchers[key] = matcher
            if len(self._matchers) > MAX_KEPT:
                self._matchers.popitem(last=False)
        self._matchers.move_to_end(key)
        made = matcher
        end_mask = self._end_mask(ends)
        return lambda: GrammarConstraint(made.deep_copy(), end_mask, param)

    def _compile(self, key: _Key, vocabulary: Vocabulary, param: str) -> LLMatcher:
        """In the compiler's thread."""
        known = self._matchers.get(key)  # compiled for another while this one waited
        if known is not None:
            return known
        _, _, ends, grammar = key
        matcher = LLMatcher(
            self._tokenizer(vocabulary, ends),
            LLMatcher.grammar_from_lark(grammar),
            log_level=0,
            limits=LIMITS,
        )
        first = matcher.deep_copy()
        if not matcher.is_error():
            first.compute_bitmask()  # finds what the constructor left for later
        for tried in (matcher, first):
            if tried.is_error():
                raise InvalidRequestError(
                    f"'{param}' cannot be followed to the letter, so it is refused: {reason_of(tried.get_error())}",
                    param=param,
                )
        return matcher

    def _tokenizer(self, vocabulary: Vocabulary, ends: frozenset[int]) -> LLTokenizer:
        key = (vocabulary.key, ends)
        if key not in self._tokenizers:
            self._tokenizers[key] = LLTokenizer(
                vocabulary.to_json(), n_vocab=self._vocab_size, eos_token=sorted(ends)
            )
            if len(self._tokenizers) > 8:
                self._tokenizers.popitem(last=False)
        return self._tokenizers[key]

    def _end_mask(self, ends: Collection[int]) -> bytes:
        mask = bytearray(4 * (self._vocab_size // 32 + 1))
        for token_id in ends:
            mask[token_id >> 3] |= 1 << (token_id & 7)
        return bytes(mask)
