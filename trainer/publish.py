"""Publishes a trained adapter to the volume, all of it or nothing (docs/contracts.md, section 1).

A version is staged in a hidden folder beside its final place, flushed to disk, renamed, and only
then does `latest` move. A job killed at any point leaves at most a hidden folder, which a later
publish clears away.
"""

from __future__ import annotations

import errno
import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.card import model_card
from trainer.durable import Written, copy_file, flush_folder, make_folder, point_link, write_text
from trainer.errors import TrainerError
from trainer.manifest import CHAT_TEMPLATE, AdapterError, build_manifest, read_adapter
from trainer.naming import is_quantised_id, name_problem
from trainer.record import RunRecord
from trainer.staging import STAGING_PREFIX, remove_stale, staging_folder
from trainer.strict_json import strict_json

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
REQUIRED_FILES = (
    ADAPTER_WEIGHTS,
    ADAPTER_CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    CHAT_TEMPLATE,
)
OPTIONAL_FILES = (
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
REPORT_FILES = ("*.html", "*.json", "*.csv", "*.png")


class PublishError(TrainerError):
    """Nothing was published, unless the message says so; one sentence says why and what to do."""


def publish(
    adapter_folder: Path,
    record: RunRecord,
    report_folder: Path | None,
    volume: Path,
    *,
    now: datetime | None = None,
) -> Path:
    """Publish the adapter as the latest version of `record.name`; the folder of the new version.

    `adapter_folder` holds what PEFT and the tokenizer saved; `report_folder` what write_report
    wrote. Only the kinds of file the contract knows are taken from them; the README is written anew
    from the record. `now` is for tests; it must carry a time zone. Raises PublishError.
    """
    created = (now or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
    _check_record(record)
    sources = _sources(adapter_folder, report_folder)
    config = _adapter_config(adapter_folder, record)
    home = volume / record.name
    try:
        make_folder(home)
        _check_latest(home)
        remove_stale(home)
        with staging_folder(home) as staging:
            version = _fill(staging, sources, config, record, created)
            final = home / version
            _rename_new(staging, final)
    except AdapterError as error:
        raise PublishError(f"{adapter_folder}: {error}") from error
    except OSError as error:
        raise PublishError(_explain(error, volume)) from error
    try:
        flush_folder(home)  # the version reaches the disk before the link that names it
        point_link(home / "latest", version, STAGING_PREFIX)
    except OSError as error:
        raise PublishError(
            f"Version {version} of {record.name} is published whole, but {home / 'latest'} could not be moved to it "
            f"({error.strerror}); publish again, or point the link at {version} by hand."
        ) from error
    return final


def published_already(adapter_folder: Path, name: str, volume: Path) -> Path | None:
    """The latest version of `name` if it holds exactly this adapter: a job may be killed right after publishing."""
    latest = volume / name / "latest"
    try:
        known = json.loads((latest / "manifest.json").read_bytes())["files"][ADAPTER_WEIGHTS]
        with (adapter_folder / ADAPTER_WEIGHTS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return latest.resolve() if known.get("sha256") == digest else None


def _check_record(record: RunRecord) -> None:
    check_name(record.name)
    if is_quantised_id(record.base.id):
        raise PublishError(
            f"The base {record.base.id!r} names a quantised repository, which a CPU server cannot load; "
            "set the recipe's base to the float model it was made from."
        )
    if not record.base.id:
        raise PublishError(
            "The run does not say which base model it belongs to; set the recipe's base."
        )
    if not record.stop_token_ids:
        raise PublishError(
            "The run names no stop tokens, so a server could never end an answer; "
            "check the chat template's end-of-turn token."
        )


def check_name(name: str) -> None:
    """Raise PublishError unless `name` may be an adapter's name."""
    if problem := name_problem(name):
        raise PublishError(problem)


def _sources(adapter_folder: Path, report_folder: Path | None) -> dict[str, Path]:
    """{path inside the version: the file to copy}, all but those that are written anew."""
    missing = [name for name in REQUIRED_FILES if not (adapter_folder / name).is_file()]
    if missing:
        hint = ""
        if missing[0] == ADAPTER_WEIGHTS and (adapter_folder / "adapter_model.bin").exists():
            hint = " (adapter_model.bin is a pickle, which can run code when loaded)"
        raise PublishError(
            f"{adapter_folder} lacks {', '.join(missing)}{hint}; save the adapter as safetensors "
            "with its tokenizer and chat template."
        )
    sources = {
        name: adapter_folder / name
        for name in (*REQUIRED_FILES, *OPTIONAL_FILES)
        if name != ADAPTER_CONFIG and (adapter_folder / name).is_file()
    }
    if report_folder is not None:
        if not report_folder.is_dir():
            raise PublishError(
                f"There is no report folder {report_folder}; write the report first."
            )
        for pattern in REPORT_FILES:
            for path in report_folder.glob(pattern):
                if path.is_file() and not path.name.startswith("."):
                    sources[f"report/{path.name}"] = path
    return sources


def _adapter_config(adapter_folder: Path, record: RunRecord) -> dict[str, Any]:
    """PEFT's configuration, pointed at the float base whatever the adapter was trained on."""
    path = adapter_folder / ADAPTER_CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PublishError(
            f"{path} cannot be read as JSON ({error}); save the adapter again."
        ) from error
    if not isinstance(config, dict):
        raise PublishError(f"{path} is not a JSON object; save the adapter again.")
    # The revision goes with the id: a 4-bit repository's commit does not exist in the float one.
    return config | {
        "base_model_name_or_path": record.base.id,
        "revision": record.base.revision,
    }


def _check_latest(home: Path) -> None:
    latest = home / "latest"
    if latest.exists() and not latest.is_symlink():
        raise PublishError(
            f"{latest} is not a symbolic link (a copy that followed links?); "
            "move it away and publish again."
        )


def _fill(
    staging: Path,
    sources: dict[str, Path],
    config: dict[str, Any],
    record: RunRecord,
    created: datetime,
) -> str:
    """Write the whole version into `staging`, flushed, the manifest last; the version's name."""
    files: dict[str, Written] = {}
    for relative, source in sources.items():
        make_folder((staging / relative).parent)
        files[relative] = copy_file(source, staging / relative)
    version = f"{created:%Y%m%d-%H%M%S}-{files[ADAPTER_WEIGHTS].sha256[:6]}"
    files[ADAPTER_CONFIG] = write_text(staging / ADAPTER_CONFIG, strict_json(config))
    # The copy is examined, not the original: what is checked is what is served.
    adapter = read_adapter(config, staging / ADAPTER_WEIGHTS)
    has_report = "report/report.html" in files
    files["README.md"] = write_text(
        staging / "README.md",
        model_card(record, version=version, adapter=adapter, has_report=has_report),
    )
    manifest = build_manifest(
        record, version=version, created=created, adapter=adapter, files=files
    )
    for folder in {(staging / relative).parent for relative in files} - {staging}:
        flush_folder(folder)
    write_text(staging / "manifest.json", strict_json(manifest))
    flush_folder(staging)
    return version


def _rename_new(staging: Path, final: Path) -> None:
    """Give the version its final name; PublishError if it is taken. rename() itself refuses a folder with files."""
    try:
        staging.rename(final)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise PublishError(
                f"{final} exists already and published versions are never changed; "
                "publish again to make a new version with a new time."
            ) from error
        raise


def _explain(error: OSError, volume: Path) -> str:
    where = error.filename or volume
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"The volume {volume} is full; free some space and publish again: nothing was published."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{where} may not be written by this user ({error.strerror}); make the volume {volume} "
            "writable for the trainer and publish again: nothing was published."
        )
    return f"{where}: {error.strerror or error}; nothing was published, publish again once that is mended."
