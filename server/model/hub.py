"""A model's folder from a hub id: downloaded once, then read from the library's cache, also without a network."""

from __future__ import annotations

from pathlib import Path

from server.errors import ModelLoadError

# What is read of a repository; it may hold the same weights in other formats too.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
)


def download(repository: str) -> Path:
    """The folder of its newest version, or of the newest one that is there if the hub cannot be asked.

    Raises ModelLoadError with what to do.
    """
    from huggingface_hub import errors, snapshot_download  # noqa: PLC0415 (only for a hub id)

    try:
        return Path(snapshot_download(repository, allow_patterns=list(FILES)))
    except errors.GatedRepoError:
        raise ModelLoadError(
            f"'{repository}' is gated: accept its licence on its page, and set HF_TOKEN to a token of yours."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelLoadError(
            f"There is no model '{repository}' on the hub, or it is private (then set HF_TOKEN)."
            " A folder is named by its path: ./NAME or /PATH/NAME."
        ) from None
    except errors.HFValidationError as error:
        raise ModelLoadError(
            f"'{repository}' is neither a folder here nor a hub id: {error}"
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ModelLoadError(
            f"'{repository}' is not in the local cache and the hub cannot be reached. Download it where there is a"
            f" network (hf download {repository}) and give its folder, or clear HF_HUB_OFFLINE."
        ) from None
    except (OSError, errors.HfHubHTTPError) as error:
        raise ModelLoadError(f"'{repository}' cannot be downloaded: {error}") from None
