"""Writes the model card: the README.md that a published version explains itself with."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

import yaml

from trainer.manifest import AdapterFacts
from trainer.record import RunRecord
from trainer.summary import (
    base_name,
    count,
    duration,
    number,
    percent,
    perplexity,
    verdict,
)


def model_card(record: RunRecord, *, version: str, adapter: AdapterFacts, has_report: bool) -> str:
    """Markdown with the YAML front matter of the Hugging Face hub."""
    sections = [
        _front_matter(record),
        _introduction(record, version, adapter),
        _warnings(record),
        _figures(record, has_report),
        _serving(record, version),
        _data(record),
        _versions(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(record: RunRecord) -> str:
    fields = {
        "base_model": record.base.id,
        "base_model_relation": "adapter",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "sft", "lorachat"],
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---"


def _introduction(record: RunRecord, version: str, adapter: AdapterFacts) -> str:
    trained_on = ""
    if record.base.quantization:
        trained_on = (
            f" It was trained on {_code(record.base.trained_on_id)} ({_text(record.base.quantization)}) "
            "and is meant to be served on the float base."
        )
    return (
        f"# {record.name}\n\n"
        f"A LoRA adapter (rank {adapter.rank}, alpha {adapter.alpha:g}, {count(adapter.parameters)} parameters) for "
        f"{_code(base_name(record))}, version {_code(version)}.{trained_on}\n\n"
        f"**{verdict(record).sentence}**"
    )


def _warnings(record: RunRecord) -> str:
    if not record.warnings:
        return ""
    lines = "\n".join(f"- {_text(warning)}" for warning in record.warnings)
    return f"## Warnings\n\n{lines}"


def _figures(record: RunRecord, has_report: bool) -> str:
    memory = record.memory
    rows = [
        ("Steps", f"{count(record.steps)} ({number(record.epochs, 2)} epochs)"),
        (
            "Wall time",
            f"{duration(record.wall_seconds)}, of which training {duration(record.train_seconds)}",
        ),
        ("Speed", f"{count(record.tokens_per_second)} tokens/s (padding not counted)"),
        ("Final training loss", number(record.final_train_loss)),
        (
            "Peak memory",
            f"{number(memory.peak_reserved_gb, 2)} GB, {percent(memory.peak_share)} of {_text(memory.device)}",
        ),
        (
            "Trainable parameters",
            f"{count(record.trainable_parameters)} of {count(record.total_parameters)}",
        ),
    ]
    parts = ["## Figures", _table(("", "this run"), rows)]
    if record.losses:
        losses = [
            (
                loss.source,
                number(loss.base),
                number(loss.tuned),
                perplexity(loss.base),
                perplexity(loss.tuned),
                count(loss.rows),
                count(loss.tokens),
            )
            for loss in record.losses
        ]
        head = (
            "held-out rows of",
            "loss, base",
            "loss, tuned",
            "perplexity, base",
            "perplexity, tuned",
            "rows",
            "tokens",
        )
        parts += [
            "Loss is the mean over tokens, in nats, on rows never trained on.",
            _table(head, losses),
        ]
    if has_report:
        parts.append("The whole run is in [report/report.html](report/report.html).")
    return "\n\n".join(parts)


def _serving(record: RunRecord, version: str) -> str:
    return f"""## Serving

On a CPU, with this version on the adapter volume:

```sh
python -m server --model {shlex.quote(record.base.id)} --adapters adapters
```

```sh
curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{record.name}@{version}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
```

`{record.name}` alone is the latest version. Tokenizer, chat template and stop tokens are those in this folder."""


def _data(record: RunRecord) -> str:
    if not record.sources:
        return ""
    head = ("source", "from", "licence", "training rows", "held-out rows", "trained tokens")
    rows = [
        (
            source.name,
            f"{source.location} at {source.revision[:8]}" if source.revision else source.location,
            source.licence or "not stated",
            count(source.train_rows),
            count(source.test_rows),
            count(source.trained_tokens),
        )
        for source in record.sources
    ]
    return "## Data\n\n" + _table(head, rows)


def _versions(record: RunRecord) -> str:
    if not record.versions:
        return ""
    return "## Versions\n\n" + _table(("", "version"), sorted(record.versions.items()))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """`value` on one line, where it can neither end a table cell nor begin an HTML tag."""
    return " ".join(value.split()).replace("|", "\\|").replace("<", "&lt;")


def _code(value: str) -> str:
    return f"`{value.replace('`', '')}`"
