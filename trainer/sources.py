"""Reads the rows of a data source, chooses among them, and identifies what was chosen.

It knows files and the hub's data sets; it knows nothing about tokens.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import SourceConfig
from trainer.conversation import Conversation, to_conversation
from trainer.errors import DataError
from trainer.hub import commit_of

FILE_KINDS = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class ChosenRows:
    """The conversations chosen from one source, in the source's order."""

    config: SourceConfig
    revision: str | None  # hub commit, where there is one
    fingerprint: str  # sha256 over the rows chosen, in order
    read: int
    conversations: tuple[Conversation, ...]


def choose_rows(source: SourceConfig, seed: int) -> ChosenRows:
    """`source.samples` rows of a source (all if null), chosen by `seed` and the source's name.

    Raises DataError if the source cannot be read or has no rows.
    """
    rows, revision = _read(source)
    if not len(rows):
        raise DataError(f"Source {source.name} ({source.location}) has no rows.")
    indices: Sequence[int] = range(len(rows))
    if source.samples is not None and source.samples < len(rows):
        indices = sorted(random.Random(f"{seed}:{source.name}").sample(indices, source.samples))
    digest = hashlib.sha256()
    conversations = []
    for index in indices:
        row = rows[index]
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
        conversations.append(to_conversation(row, index, source))
    return ChosenRows(
        source, revision, f"sha256:{digest.hexdigest()}", len(rows), tuple(conversations)
    )


def is_local(location: str) -> bool:
    """Whether a location is a file rather than the id of a hub data set."""
    return location.endswith(FILE_KINDS) or Path(location).exists()


def _read(source: SourceConfig) -> tuple[Any, str | None]:
    """The rows (anything with a length and integer indexing) and the hub commit."""
    if not is_local(source.location):
        return _read_hub(source)
    path = Path(source.location)
    if not path.is_file():
        raise DataError(
            f"Source {source.name}: there is no file {path}. Give another with --set data.sources.N.location=FILE."
        )
    if path.suffix == ".jsonl":
        return _read_jsonl(path), None
    if path.suffix == ".json":
        return _read_json(path), None
    if path.suffix == ".parquet":
        return _read_parquet(path), None
    raise DataError(
        f"Source {source.name}: {path} is not one of the kinds that are read: {', '.join(FILE_KINDS)}."
    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_row(line, f"{path}, line {number}"))
    return rows


def _row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not JSON: {error.msg}.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object.")
    return row


def _read_json(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON: {error.msg}, line {error.lineno}.") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} is not a JSON list of objects.")
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    # Half a second to import; only for this kind of file.
    import pyarrow  # type: ignore[import-untyped]  # noqa: PLC0415
    import pyarrow.parquet  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}.") from None
    return rows


def _read_hub(source: SourceConfig) -> tuple[Any, str | None]:
    from datasets import load_dataset  # noqa: PLC0415 (seconds to import)

    try:
        rows = load_dataset(source.location, split=source.split, revision=source.revision)
    # datasets raises its own classes, the hub's, requests' or httpx's, and ValueError for a wrong split.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"Source {source.name}: the data set {source.location} could not be read: {reason} Is the id right, "
            "and is the hub within reach? A local .jsonl, .json or .parquet file works as a location too."
        ) from error
    return rows, commit_of("dataset", source.location, source.revision)
