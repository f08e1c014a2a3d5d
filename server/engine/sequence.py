"""One choice of one request while it is being computed: its tokens, its counters, and when it ends."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field

from server.engine.drafts import Drafter
from server.engine.prefix_cache import BlockTable, Namespace
from server.engine.text import TextStream
from server.step import Sampled
from server.types import (
    AdapterHandle,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    PromptScored,
    SamplingParams,
    TokenConstraint,
    TokenLogprob,
)


@dataclass(slots=True, eq=False)
class Sequence:
    """Created when the request arrives; owned by the engine's thread afterwards.

    stop_token_ids: the model's own. leader: another choice with the same prompt that is computed first, so that this
    one finds the prompt in the prefix cache. tenant: whose turn it takes.
    """

    request_id: str
    index: int
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stop_token_ids: Collection[int]
    adapter: AdapterHandle | None
    text: TextStream
    cache_scope: str = ""
    constraint: TokenConstraint | None = None
    leader: Sequence | None = None
    tenant: str = ""

    arrival: int = -1  # in order of coming; set by the scheduler
    table: BlockTable | None = None  # None unless it runs
    output_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(init=False)  # prompt and output
    is_dequeued: bool = False  # whether it has run or left: its prompt no longer counts as waiting
    is_prompt_computed: bool = False
    cached_tokens: int | None = None  # None until it was first admitted
    scored: list[TokenLogprob] = field(default_factory=list)
    drafter: Drafter | None = None
    finish_reason: FinishReason | None = None
    stopped_by: str | int | None = None
    # Of this choice's generator: choices of one request differ, and none shifts another's draws.
    seed: int = field(init=False)
    end_ids: frozenset[int] = field(init=False)  # tokens that end the answer
    banned_ids: tuple[int, ...] = field(init=False)  # the same, for as long as it must not end

    def __post_init__(self) -> None:
        digest = hashlib.sha256(f"{self.params.seed}:{self.index}".encode()).digest()
        self.seed = int.from_bytes(digest[:8], "little") >> 1
        self.token_ids = list(self.prompt_ids)
        own = () if self.params.ignore_eos else self.stop_token_ids
        self.end_ids = frozenset(own) | frozenset(self.params.stop_token_ids)
        self.banned_ids = tuple(sorted(self.end_ids)) if self.params.min_tokens else ()

    @property
    def namespace(self) -> Namespace:
        """What the prefix cache may share its blocks by."""
        return ("" if self.adapter is None else self.adapter.digest, self.cache_scope)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens that wait because of it: those that share a leader's prompt add none."""
        return len(self.prompt_ids) if self.leader is None else 0

    @property
    def max_positions(self) -> int:
        """KV positions it may need. The last token drawn is never computed, hence the -1."""
        return len(self.prompt_ids) + max(0, self.params.max_tokens - 1)

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def is_decoding(self) -> bool:
        """Whether just the last token, one that was drawn, is still to be computed."""
        table = self.table
        return (
            table is not None
            and bool(self.output_ids)
            and table.num_computed == len(self.token_ids) - 1
        )

    @property
    def is_scoring(self) -> bool:
        """Whether log-probabilities of its prompt are still to be computed."""
        return self.params.prompt_logprobs is not None and not self.is_prompt_computed

    @property
    def num_reusable(self) -> int:
        """How many of the first tokens need not be computed if they are found computed."""
        # The last token's logits are needed, and the prompt's log-probabilities come from logits, too.
        known = len(self.token_ids) - 1
        return min(known, len(self.scored)) if self.is_scoring else known

    def take_scored(self, start: int, scored: tuple[TokenLogprob, ...]) -> None:
        """Log-probabilities of the prompt's tokens after positions start, start+1, …"""
        self.scored[start:] = scored  # after a preemption some come again, the same

    def finish_prompt(self) -> list[PromptScored | Finished]:
        """Call once, when the whole prompt is computed. Returns what there is to say before the first token."""
        self.is_prompt_computed = True
        events: list[PromptScored | Finished] = []
        if self.params.prompt_logprobs is not None:
            events.append(PromptScored(self.index, tuple(self.scored)))
        if self.params.max_tokens == 0:
            self.finish_reason = FinishReason.LENGTH
            events.append(self._finished("", (), ()))
        return events

    def take(self, sampled: tuple[Sampled, ...]) -> Delta | Finished:
        """Take the tokens drawn in one step, up to the one that ends the answer; what follows it is dropped."""
        text, first = "", len(self.output_ids)
        for drawn in sampled:
            text += self._append(drawn.token_id)
            if self.finish_reason is not None:
                break
        token_ids = tuple(self.output_ids[first:])
        logprobs = tuple(
            drawn.logprob for drawn in sampled[: len(token_ids)] if drawn.logprob is not None
        )
        if self.finish_reason is not None:
            return self._finished(text, token_ids, logprobs)
        return Delta(self.index, text, token_ids, logprobs)

    def _append(self, token_id: int) -> str:
        """The text that may be shown now. Sets finish_reason at the end."""
        self.output_ids.append(token_id)
        self.token_ids.append(token_id)
        count, params = len(self.output_ids), self.params
        may_stop = count >= params.min_tokens
        is_end, at_limit = token_id in self.end_ids, count >= params.max_tokens
        shown = "" if is_end else self.text.push(token_id, may_stop=may_stop)
        if is_end or at_limit:
            # May complete a stop string, hence before the questions below.
            shown += self.text.flush(may_stop=may_stop)
        if self.text.is_stopped:
            self.finish_reason = FinishReason.STOP
            self.stopped_by = self.text.stopped_by
        elif is_end:
            self.finish_reason = FinishReason.STOP
            # The model's own end is the normal one and needs no telling.
            is_own = token_id in self.stop_token_ids and not params.ignore_eos
            self.stopped_by = None if is_own else token_id
        elif at_limit:
            self.finish_reason = FinishReason.LENGTH
        elif self.constraint is not None:
            self.constraint.advance(token_id)
        return shown

    def _finished(
        self, text: str, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]
    ) -> Finished:
        assert self.finish_reason is not None
        return Finished(
            self.index,
            text,
            self.finish_reason,
            len(self.output_ids),
            token_ids,
            logprobs,
            self.cached_tokens or 0,
            self.stopped_by,
        )


def sequences_of(
    request: GenerationRequest, adapter: AdapterHandle | None, key: str
) -> tuple[Sequence, ...]:
    """One for each choice. All but the first wait until that one has computed the prompt they share."""
    sequences: list[Sequence] = []
    params = request.params
    for index in range(request.n):
        decoder = request.model.text_decoder()
        sequences.append(
            Sequence(
                request_id=key,
                index=index,
                prompt_ids=request.prompt_ids,
                params=params,
                stop_token_ids=request.model.stop_token_ids,
                adapter=adapter,
                text=TextStream(decoder, params.stop, include_stop=params.include_stop),
                cache_scope=request.cache_scope,
                constraint=None if request.new_constraint is None else request.new_constraint(),
                leader=sequences[0] if sequences else None,
                tenant=request.tenant,
            )
        )
    return tuple(sequences)
