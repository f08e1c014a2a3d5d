"""The process around a run: variables set before the training libraries are imported, their noise, their versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import warnings

# Nothing about a run leaves the machine: TRL and the hub's client report usage, unsloth fetches a file to count loads.
TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "UNSLOTH_DISABLE_STATISTICS")
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "tokenizers",
    "bitsandbytes",
    "unsloth",
    "liger-kernel",
)


def prepare_environment(*, needs_hub: bool) -> None:
    """Switch telemetry off, and the hub too if nothing in the recipe is on it.

    Values that are already set stay. One GPU is used unless a launcher started several processes.
    """
    for name in TELEMETRY:
        os.environ.setdefault(name, "1")
    # The tokenizer's own threads and the data loader's fork do not go together.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not needs_hub:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "WORLD_SIZE" not in os.environ:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


def hush_libraries() -> None:
    """Keep the libraries' bars and advice out of ours; errors still show."""
    import datasets  # noqa: PLC0415 (seconds to import; after the variables are set)
    import transformers  # noqa: PLC0415

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # transformers 5.23 renames gradient_checkpointing; 5.17 knows the old name only.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the result."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
