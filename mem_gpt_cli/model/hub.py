"""Configs of hub models, through huggingface_hub's own cache and variables."""

from __future__ import annotations

from pathlib import Path

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

_WAYS_OUT = (
    "name a model of the catalogue (`memgpt models`), or a config.json or model folder on this machine"
)


def config_of(repository: str) -> Path:
    """The config.json of a hub repository: from the cache, else downloaded into it.

    Raises:
        EnvironmentUnavailableError: offline and not in the cache, no connection, gated, or not there.
        UsageError: for a text that cannot be a repository's name.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, "config.json", local_files_only=True))
    except errors.HFValidationError as error:
        raise UsageError(f"model.name: {repository!r} is not a hub id: {error}") from None
    except errors.LocalEntryNotFoundError:
        pass
    if constants.HF_HUB_OFFLINE:
        raise EnvironmentUnavailableError(
            f"{repository} is not in the hub's cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE forbids "
            f"to download it: unset HF_HUB_OFFLINE, or {_WAYS_OUT}"
        )
    return _download(repository)


def _download(repository: str) -> Path:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    try:
        # Asked for first, because it fails at once where the download tries again for half a minute.
        get_hf_file_metadata(hf_hub_url(repository, "config.json"))
        return Path(hf_hub_download(repository, "config.json"))
    except errors.GatedRepoError:
        reason = "is gated: accept its terms on the hub and set HF_TOKEN"
    except errors.RepositoryNotFoundError:
        reason = "is not on the hub, or private: check the name, or set HF_TOKEN"
    except errors.RemoteEntryNotFoundError:
        reason = "has no config.json on the hub, so it holds no transformers model"
    except errors.HfHubHTTPError as error:
        reason = f"cannot be had from the hub ({type(error).__name__}): try again"
    except Exception as error:  # the kinds of the HTTP library, which is another one with each major version
        reason = (
            f"is not in the hub's cache and the hub cannot be reached ({type(error).__name__}): connect, "
            "set HF_ENDPOINT to a mirror or HF_HOME to a folder that has it"
        )
    raise EnvironmentUnavailableError(f"{repository} {reason}; or {_WAYS_OUT}")
