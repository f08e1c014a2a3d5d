"""A sequence's part of a step, as the runner wants it, and whether what comes back fits."""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from server.engine.sequence import Sequence
from server.step import Batch, Row, RowResult


def decoding_row(sequence: Sequence, drafts: Tokens[int] = ()) -> Row:
    """The last token that was drawn, and guesses at what follows it."""
    return _row(sequence, (sequence.token_ids[-1], *drafts), num_draws=1 + len(drafts))


def prefill_row(sequence: Sequence, most: int) -> Row:
    """The next tokens of a sequence whose text is not yet computed, `most` of them at most."""
    assert sequence.table is not None
    start = sequence.table.num_computed
    end = min(start + most, len(sequence.token_ids))
    draws = end == len(sequence.token_ids) and sequence.params.max_tokens > 0
    scored = sequence.prompt_ids[start + 1 : end + 1] if sequence.is_scoring else ()
    return _row(sequence, tuple(sequence.token_ids[start:end]), num_draws=int(draws), scored=scored)


def check_results(batch: Batch, results: list[RowResult]) -> None:
    """Raises RuntimeError unless there is a result for each row, with as many tokens as its draws allow."""
    if len(results) != len(batch.rows):
        raise RuntimeError(f"{len(results)} results for {len(batch.rows)} rows")
    for row, result in zip(batch.rows, results, strict=True):
        drawn = len(result.sampled)
        if drawn > row.num_draws or (drawn == 0) != (row.num_draws == 0):
            raise RuntimeError(f"{drawn} tokens drawn where there were {row.num_draws} draws")
        if len(result.scored) != len(row.scored_ids):
            raise RuntimeError(f"{len(result.scored)} of {len(row.scored_ids)} tokens were scored")


def _row(
    sequence: Sequence, token_ids: tuple[int, ...], *, num_draws: int, scored: tuple[int, ...] = ()
) -> Row:
    assert sequence.table is not None
    drawn = len(sequence.output_ids)
    banned_draws = max(0, min(num_draws, sequence.params.min_tokens - drawn))
    return Row(
        token_ids=token_ids,
        start=sequence.table.num_computed,
        block_ids=sequence.table.block_ids,
        num_draws=num_draws,
        params=sequence.params,
        seed=sequence.seed,
        draw=drawn,
        adapter=sequence.adapter,
        prompt_ids=sequence.prompt_ids,
        output_ids=sequence.output_ids,
        banned_ids=sequence.banned_ids if banned_draws else (),
        num_banned_draws=banned_draws,
        constraint=sequence.constraint,
        scored_ids=scored,
    )
