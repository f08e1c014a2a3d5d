"""The data stage: sources -> conversations -> token ids and labels -> train and held-out rows, every row accounted for.

Composes sources, dedup, template and split. It knows nothing about models or trainers.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from trainer.config import DataConfig
from trainer.conversation import Conversation, is_well_formed
from trainer.dedup import Groups, duplicates_to_remove, near_duplicates
from trainer.errors import DataError
from trainer.prepared_cache import PreparedCache, SortedRows
from trainer.progress import Bar, Reporter
from trainer.record import MaskedSample, SourceCounts
from trainer.sources import ChosenRows, choose_rows
from trainer.split import held_out, spread
from trainer.template import ChatTemplate, Encoded

MASKED_SAMPLES = 3
# What decides what comes of the rows: a change in it makes what was kept stale.
LIBRARIES = ("jinja2", "tokenizers", "transformers")
CODE = ("conversation.py", "dataset.py", "dedup.py", "split.py", "template.py")


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised conversation."""

    conversation: Conversation
    encoded: Encoded

    @property
    def source(self) -> str:
        """The name of the row's source."""
        return self.conversation.source

    @property
    def tokens(self) -> int:
        """Length in tokens."""
        return len(self.encoded.input_ids)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """What the run learns from and is judged on."""

    train: tuple[Row, ...]
    test: tuple[Row, ...]
    counts: tuple[SourceCounts, ...]
    samples: tuple[MaskedSample, ...]  # of train rows
    warnings: tuple[str, ...]
    repeats: Mapping[str, int]  # by source name

    @property
    def epoch(self) -> tuple[Row, ...]:
        """The rows of one pass over the training data: each as often as its source's `repeat` says."""
        return tuple(row for row in self.train for _ in range(self.repeats[row.source]))


def prepare(
    config: DataConfig,
    template: ChatTemplate,
    max_tokens: int,
    reporter: Reporter,
    cache: PreparedCache | None = None,
) -> PreparedData:
    """Read, choose, clean, tokenise and split the data.

    max_tokens: longest row. cache: where the last three are kept and found again, by what they were made from. Raises
    DataError if a source cannot be used or if nothing is left of it.
    """
    chosen = [choose_rows(source, config.seed) for source in config.sources]
    conversations = [row for source in chosen for row in source.conversations]
    key = _key(chosen, config, template, max_tokens) if cache else ""
    kept = cache.load(key) if cache else None
    if kept is not None:
        reporter.say(f"These rows were prepared before: taken from the cache ({key[:12]})")
    else:
        kept = _sorted_rows(conversations, config, template, max_tokens, reporter)
        if cache and (problem := cache.save(key, kept)):
            reporter.warn(f"The prepared data could not be kept for another run: {problem}")
    rows = [
        Row(conversations[place], encoded)
        for place, encoded in zip(kept.places, kept.encoded, strict=True)
    ]
    tally = {reason: Counter(counts) for reason, counts in kept.tallies.items()}
    train = tuple(row for index, row in enumerate(rows) if index not in kept.test)
    test = tuple(row for index, row in enumerate(rows) if index in kept.test)
    counts = tuple(_count(source, tally, train, test) for source in chosen)
    for count in counts:
        if not count.train_rows:
            raise DataError(
                f"Source {count.name}: no rows are left to train on of {count.chosen} chosen "
                f"({count.duplicates} near-duplicates, {count.rejected} malformed, {count.no_trained_token} without "
                f"an answer, {count.too_long} over {max_tokens} tokens). Check the source, or model.max_seq_length."
            )
    if not test:
        raise DataError(
            f"No rows are left to hold out of {len(rows)}; give more data or a larger data.test_fraction."
        )
    return PreparedData(
        train,
        test,
        counts,
        masked_samples(train, template, config),
        _advice(counts, config),
        {source.name: source.repeat for source in config.sources},
    )


def curve_rows(data: PreparedData, config: DataConfig, count: int) -> tuple[Row, ...]:
    """The fixed subset of the held-out rows that the validation curve is drawn from."""
    indices = spread([row.source for row in data.test], count, config.seed)
    return tuple(data.test[index] for index in indices)


class _Tally:
    """Rows lost, by reason and source name."""

    def __init__(self) -> None:
        self.rejected: Counter[str] = Counter()
        self.duplicates: Counter[str] = Counter()
        self.no_trained_token: Counter[str] = Counter()
        self.too_long: Counter[str] = Counter()
        self.truncated: Counter[str] = Counter()


def _sorted_rows(
    conversations: Sequence[Conversation],
    config: DataConfig,
    template: ChatTemplate,
    max_tokens: int,
    reporter: Reporter,
) -> SortedRows:
    tally = _Tally()
    usable, groups = _without_duplicates(conversations, config, tally)
    bar = reporter.bar("Tokenising", len(usable))
    rows, rows_groups = _tokenised(usable, groups, template, config, max_tokens, tally, bar)
    test = held_out(rows_groups, [row.source for row in rows], config.test_fraction, config.seed)
    places = {(row.source, row.index): place for place, row in enumerate(conversations)}
    return SortedRows(
        [places[row.source, row.conversation.index] for row in rows],
        [row.encoded for row in rows],
        frozenset(test),
        {reason: dict(counts) for reason, counts in vars(tally).items()},
    )


def _key(
    chosen: Sequence[ChosenRows], config: DataConfig, template: ChatTemplate, max_tokens: int
) -> str:
    """sha256 over everything that decides what comes of the rows: they, the recipe, the tokenizer, and the code."""
    digest = hashlib.sha256()
    parts = [
        json.dumps([[rows.fingerprint, rows.config.model_dump(mode="json")] for rows in chosen]),
        config.model_dump_json(exclude={"sources"}),
        str(max_tokens),
        template.text,
        template.tokenizer.backend_tokenizer.to_str(),
        json.dumps(template.tokenizer.special_tokens_map, default=str, sort_keys=True),
        *(f"{library} {version(library)}" for library in LIBRARIES),
        *(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in CODE),
    ]
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()


def _without_duplicates(
    conversations: Sequence[Conversation], config: DataConfig, tally: _Tally
) -> tuple[list[Conversation], list[int]]:
    """The conversations that stay, and for each the group that must not be split."""
    threshold = config.near_duplicate_threshold
    usable = []
    for conversation in conversations:
        if not conversation.messages:
            tally.no_trained_token[conversation.source] += 1
        elif not is_well_formed(conversation):
            tally.rejected[conversation.source] += 1
        else:
            usable.append(conversation)
    removed, groups = duplicates_to_remove([row.text for row in usable], threshold)
    _join_prompts(usable, groups, threshold)
    tally.duplicates.update(usable[index].source for index in removed)
    kept = [index for index in range(len(usable)) if index not in removed]
    return [usable[index] for index in kept], [groups.find(index) for index in kept]


def _join_prompts(rows: Sequence[Conversation], groups: Groups, threshold: float) -> None:
    """A question asked twice with different answers is no duplicate, but would tell the model a held-out question."""
    for left, right in near_duplicates([row.prompt for row in rows], threshold):
        groups.join(left, right)


def _tokenised(
    conversations: Sequence[Conversation],
    groups: Sequence[int],
    template: ChatTemplate,
    config: DataConfig,
    max_tokens: int,
    tally: _Tally,
    bar: Bar,
) -> tuple[list[Row], list[int]]:
    rows, rows_groups = [], []
    for conversation, group in zip(conversations, groups, strict=True):
        bar.advance()
        if template.holds_control_tokens(conversation.messages):
            tally.rejected[conversation.source] += 1
            continue
        encoded: Encoded | None = template.encode(conversation.messages)
        if encoded is not None and not encoded.trained_tokens:
            tally.no_trained_token[conversation.source] += 1
            continue
        if encoded is not None and len(encoded.input_ids) > max_tokens:
            tally.too_long[conversation.source] += 1
            encoded = encoded.cut(max_tokens) if config.long_rows == "truncate" else None
            tally.truncated[conversation.source] += encoded is not None
        if encoded is not None:
            rows.append(Row(conversation, encoded))
            rows_groups.append(group)
    return rows, rows_groups


def _count(
    chosen: ChosenRows, tally: Mapping[str, Counter[str]], train: Sequence[Row], test: Sequence[Row]
) -> SourceCounts:
    name = chosen.config.name
    train = [row for row in train if row.source == name]
    test_rows = sum(row.source == name for row in test)
    return SourceCounts(
        name=name,
        kind=chosen.config.kind,
        location=chosen.config.location,
        revision=chosen.revision,
        licence=chosen.config.licence,
        fingerprint=chosen.fingerprint,
        read=chosen.read,
        chosen=len(chosen.conversations),
        duplicates=tally["duplicates"][name],
        rejected=tally["rejected"][name],
        no_trained_token=tally["no_trained_token"][name],
        too_long=tally["too_long"][name],
        truncated=tally["truncated"][name],
        kept=len(train) + test_rows,
        train_rows=len(train),
        test_rows=test_rows,
        train_tokens=sum(row.tokens for row in train),
        trained_tokens=sum(row.encoded.trained_tokens for row in train),
    )


def masked_samples(
    train: Sequence[Row], template: ChatTemplate, config: DataConfig, count: int = MASKED_SAMPLES
) -> tuple[MaskedSample, ...]:
    """`count` rows, spread over the sources, as spans of text that are trained or not."""
    chosen = spread([row.source for row in train], count, config.seed)
    return tuple(
        MaskedSample(train[index].source, template.spans(train[index].encoded)) for index in chosen
    )


def _advice(counts: Sequence[SourceCounts], config: DataConfig) -> tuple[str, ...]:
    warnings = []
    for count, source in zip(counts, config.sources, strict=True):
        if source.samples is not None and count.chosen < source.samples:
            warnings.append(
                f"Source {count.name} has {count.chosen} rows; {source.samples} were asked for."
            )
        if not count.test_rows:
            warnings.append(f"Source {count.name} has no held-out rows.")
        lost = count.chosen - count.kept - count.duplicates
        if lost > count.chosen / 10:
            dropped = f"{count.too_long - count.truncated} too long"
            if config.long_rows == "truncate":
                dropped += " even when cut after their first answer"
            warnings.append(
                f"Source {count.name}: {lost} of {count.chosen} rows could not be used ({dropped}, "
                f"{count.rejected} malformed, {count.no_trained_token} without an answer)."
            )
    return tuple(warnings)
